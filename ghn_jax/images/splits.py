"""Which images a set is trained, validated and tested with."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from ghn_jax.images.examples import Source, Split, Subset

NAMES = {
    "train": ("train", "training"),
    "val": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
"""Names under which data sets have their splits, in any case."""


def split_names(dataset: str, there: Iterable[str]) -> dict[str, str]:
    """For each of train, val and test the name that it has among those `there`, if it is there.

    Raises ValueError if two names stand for one split.
    """
    found: dict[str, str] = {}
    for name in there:
        split = next((split for split, names in NAMES.items() if name.lower() in names), None)
        if split in found:
            raise ValueError(
                f"`dataset` (={dataset!r}) has both {found[split]!r} and {name!r}, of which one is to be used: "
                "rename or move the other"
            )
        if split is not None:
            found[split] = name
    return found


class ThreeSplits(NamedTuple):
    """Training, validation and test images, and what a person should know of how they were told apart."""

    train: Source
    val: Source
    test: Source
    notes: tuple[str, ...] = ()


def three_splits(dataset: str, splits: Mapping[str, Split], needs_test: bool = False) -> ThreeSplits:
    """Training, validation and test images.

    Validation images come from the training ones if need be; so do test images if there are neither.

    Args:
      needs_test: whether a set without images to test with is not whole.

    Raises ValueError for an empty split, if there are no training images, and if they are too few.
    """
    for name, split in splits.items():
        if len(split) == 0:
            remedy = (
                f"move {name} away, or its images into folders of their classes"
                if dataset.startswith("folder:")
                else "prepare it again"
            )
            raise ValueError(f"`dataset` (={dataset!r}) has no images in its split {name!r}: {remedy}")
    # Test labels that a benchmark keeps secret are stored as -1.
    labelled = {name: split for name, split in splits.items() if split.labelled()}
    names = split_names(dataset, labelled)
    train, *unseen = (labelled[names[name]] if name in names else None for name in ("train", "val", "test"))
    unseen = [split for split in unseen if split is not None]
    if train is None or (needs_test and not unseen):
        needed = "train, and validation or test" if needs_test else "at least train"
        raise ValueError(
            f"`dataset` (={dataset!r}) has the labelled splits {', '.join(labelled) or 'none'}: needed are {needed}"
        )
    if len(unseen) == 2:
        return ThreeSplits(train, unseen[0], unseen[1])
    held_out = train.held_out()
    if len(held_out) == 0:
        raise ValueError(
            f"`dataset` (={dataset!r}) has too few training images ({len(train)}) to hold out a tenth for validation: "
            "add some"
        )
    tested = train.held_out_to_test() if not unseen else np.arange(0)
    kept = np.setdiff1d(np.arange(len(train)), np.union1d(held_out, tested))
    val = Subset(train, held_out)
    if unseen:
        return ThreeSplits(Subset(train, kept), val, unseen[0])
    note = (
        f"there are training images alone: {len(tested)} of them are held out to test with, and {len(val)} to validate"
        " with, the same ones in every run"
    )
    return ThreeSplits(Subset(train, kept), val, Subset(train, tested), (note,))

"""Which images a set is trained, validated and tested with."""

from collections.abc import Iterable, Mapping

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


def three_splits(dataset: str, splits: Mapping[str, Split]) -> tuple[Source, Source, Source]:
    """Training, validation and test images; validation images come from the training ones if need be.

    Raises ValueError for an empty split, and if there are no images for one of the three.
    """
    for name, split in splits.items():
        if len(split) == 0:
            raise ValueError(
                f"`dataset` (={dataset!r}) has no images in its split {name!r}: prepare it again"
            )
    # Test labels that a benchmark keeps secret are stored as -1.
    labelled = {name: split for name, split in splits.items() if split.labelled()}
    names = split_names(dataset, labelled)
    train, *unseen = (labelled[names[name]] if name in names else None for name in ("train", "val", "test"))
    unseen = [split for split in unseen if split is not None]
    if train is None or not unseen:
        raise ValueError(
            f"`dataset` (={dataset!r}) has the labelled splits {', '.join(labelled) or 'none'}: needed are train, and "
            "validation or test"
        )
    if len(unseen) == 2:
        return train, unseen[0], unseen[1]
    held_out = train.held_out()
    if len(held_out) == 0:
        raise ValueError(
            f"`dataset` (={dataset!r}) has too few training images ({len(train)}) to hold out a tenth for validation"
        )
    kept = np.setdiff1d(np.arange(len(train)), held_out)
    return Subset(train, kept), Subset(train, held_out), unseen[0]

"""What a streamed image set is made of: undecoded images with their classes, by index."""

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int


class DamagedImage(ValueError):
    """A record or file that holds no whole image of a known class."""


class Example(NamedTuple):
    """An image file's content, its class, and where it is: a file, or a record of a split."""

    data: bytes
    label: int
    place: str = ""


class Source(Protocol):
    """Random access to the images of a split; sent to worker processes, hence to be pickled.

    `source[index]` raises DamagedImage for what cannot be read.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


class Split(Source, Protocol):
    """A split as it lies on disk."""

    def labelled(self) -> bool:
        """Whether its images have labels."""
        ...

    def held_out(self) -> Int[np.ndarray, " image"]:
        """Indices of the images to validate with, if the set has no validation images."""
        ...

    def held_out_to_test(self) -> Int[np.ndarray, " image"]:
        """Indices of others to test with, if it has no test images either: as many, drawn at random, once for good."""
        ...


class Subset:
    """Some images of another source."""

    def __init__(self, source: Source, indices: Int[np.ndarray, " image"]):
        self._source = source
        self._indices = indices.astype(np.int32)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> Example:
        return self._source[int(self._indices[index])]


class Found(NamedTuple):
    """What a directory holds.

    Attributes:
      classes: their names, in the order of the labels.
      shape: height and width of all images and their colours, None where they differ or only the images tell.
      splits: by the names they have there.
      fingerprint: changes with the names of the files or the sizes of the shards.
      notes: what was passed over, for a person to read.
    """

    classes: tuple[str, ...]
    shape: tuple[int | None, int | None, int]
    splits: dict[str, Split]
    fingerprint: str
    notes: tuple[str, ...] = ()


MAX_HELD_OUT = 50_000
"""50 images of each ImageNet class are held out for validation, as published; of a smaller set a tenth."""

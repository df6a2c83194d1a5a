"""Image sets too large for a device: random access to their undecoded images and labels.

    imagenet             TFDS `imagenet2012`, version 5.1.0, in array_record format
    tfds:NAME            any TFDS classification set, tfds:NAME/CONFIG:VERSION in full
    folder:PATH          a directory PATH/{train,val}/CLASS/*.jpg, as torchvision's ImageFolder has it, or PATH/CLASS

TensorFlow is not needed. See docs/imagenet.md for how to get ImageNet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ghn_jax.images.examples import Source
from ghn_jax.images.folders import open_folder
from ghn_jax.images.identity import Identity
from ghn_jax.images.measure import LARGE, THUMBNAIL, Measured, Shape, measure, natural_size
from ghn_jax.images.splits import three_splits
from ghn_jax.images.tfds_directories import open_tfds
from ghn_jax.runtime.errors import expand_home
from ghn_jax.runtime.extras import extra

STREAMED = ("imagenet", "tfds:NAME", "folder:PATH")
"""Forms of the names that `open_dataset` accepts."""

RGB = tuple[float, float, float]

_NOT_MIRRORED = "images are not mirrored, since they seem to show digits or letters"

_IMAGENET_COLORS: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR10_COLORS: tuple[RGB, RGB] = (
    (0.49139968, 0.48215827, 0.44653124),
    (0.24703233, 0.24348505, 0.26158768),
)


@dataclass(frozen=True)
class StreamedDataset:
    """A classification set, and how its images are cropped and normalised.

    Attributes:
      name: as given to `open_dataset`.
      classes: their names, in the order of the labels.
      image_size: height and width of the images that networks see, in pixels.
      mean: of the pixels per colour, in 0..1; the published constants.
      std: their standard deviation.
      flip: whether a mirrored image still belongs to its class.
      crops: training images are "resized" random parts with jittered colours, as published for ImageNet; or, in sets
        of thumbnails and of characters, whole images "shifted" a little, as published for CIFAR-10.
      train: training images.
      val: held out from the training images, unless the set has three splits.
      test: images never trained on; ImageNet's official validation images, since its test labels are secret. Held out
        too from a set of training images alone.
      fingerprint: see `Identity`.
      notes: what a person should know of how the set was read.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    mean: RGB
    std: RGB
    flip: bool
    crops: Literal["resized", "shifted"]
    train: Source
    val: Source
    test: Source
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def identity(self) -> Identity:
        """What tells the set from others, and from itself before it changed."""
        num_images = {"train": len(self.train), "val": len(self.val), "test": len(self.test)}
        return Identity(self.classes, num_images, self.fingerprint)


def open_dataset(
    name: str, data_dir: Path | str | None = None, image_size: int | None = None
) -> StreamedDataset:
    """Opens a data set, without reading its images.

    Args:
      name: of the forms in `STREAMED`.
      data_dir: TFDS directory; not used by folder:PATH.
      image_size: by default that of `measure.natural_size`, 224 for ImageNet.

    Raises:
      ValueError: the name is unknown; the set is missing, incomplete, of another version or format, or has an empty
        split or a single class; or no decoder is installed.
    """
    with extra("train"):  # told here rather than at the first batch
        import PIL  # noqa: F401
        import simplejpeg  # noqa: F401
    if image_size is not None and image_size < 1:
        raise ValueError(f"`image_size` (={image_size}) must be at least 1")
    kind, _, rest = name.partition(":")
    if name == "imagenet":
        found = open_tfds("imagenet2012:5.1.0", data_dir, renamed=False)
    elif kind == "tfds" and rest:
        found = open_tfds(rest, data_dir)
    elif kind == "folder" and rest:
        found = open_folder(expand_home("dataset", Path(rest)))
    else:
        raise ValueError(f"`dataset` (={name!r}) is unknown: valid are {', '.join(STREAMED)}")
    if len(found.classes) < 2:
        raise ValueError(
            f"`dataset` (={name!r}) has {len(found.classes)} class: classification needs two or more"
        )
    train, val, test, told = three_splits(name, found.splits, needs_test=name == "imagenet")
    shape, shorter = Measured((None, None, 3), LARGE) if name == "imagenet" else measure(train, found.shape)
    image_size = image_size or natural_size(shorter)
    characters = shows_characters(shape, found.classes)
    is_square = shape[0] is not None and shape[0] == shape[1]
    thumbnails = is_square and shorter <= THUMBNAIL and image_size == natural_size(shorter)
    whole = characters or thumbnails
    mean, std = _CIFAR10_COLORS if whole else _IMAGENET_COLORS
    return StreamedDataset(
        name=name,
        classes=found.classes,
        image_size=image_size,
        mean=mean,
        std=std,
        flip=not characters,
        crops="shifted" if whole else "resized",
        train=train,
        val=val,
        test=test,
        fingerprint=found.fingerprint,
        notes=(*found.notes, *told, *([_NOT_MIRRORED] if characters else [])),
    )


def shows_characters(shape: Shape, classes: Sequence[str]) -> bool:
    """Whether images seem to show digits or letters, which are others when mirrored.

    They do if they are grey and of 28 x 28 pixels, as in MNIST and all sets made in its likeness, or if each class is
    called by a single character.
    """
    return shape == (28, 28, 1) or all(len(name) == 1 for name in classes)

"""What tells a set of images from another one, and from itself before it changed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ghn_jax.runtime.errors import some


@dataclass(frozen=True)
class Identity:
    """What a run must find again to go on as it began.

    Attributes:
      classes: their names, in the order of the labels.
      num_images: of the splits train, val and test.
      fingerprint: of the images' names and classes in folders, of the places of all records in TFDS directories, of all
        pixels in sets on the device.
    """

    classes: tuple[str, ...]
    num_images: dict[str, int]
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to be kept as JSON."""
        return asdict(self) | {"classes": list(self.classes)}

    def changes(self, before: dict[str, Any]) -> list[str]:
        """What is no longer as in `before`, from `to_dict`; one phrase each, none if all is the same."""
        found = changed_classes(before["classes"], self.classes)
        for split, num in self.num_images.items():
            if before["num_images"].get(split) != num:
                found.append(f"{split} had {before['num_images'].get(split)} images, has {num}")
        if not found and before["fingerprint"] != self.fingerprint:
            found.append("images were replaced or renamed")
        return found


def changed_classes(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """What is no longer as it was of the names of classes, as `Identity.changes` says it."""
    found = []
    if len(before) != len(now):
        found.append(f"it had {len(before)} classes, has {len(now)}")
    gone, new = _missing(before, now), _missing(now, before)
    if gone:
        found.append(f"classes are gone: {some(gone)}")
    if new:
        found.append(f"classes are new: {some(new)}")
    if not found and list(before) != list(now):
        found.append("classes are in another order")
    return found


def _missing(names: Sequence[str], among: Sequence[str]) -> list[str]:
    known = set(among)
    return [name for name in names if name not in known]

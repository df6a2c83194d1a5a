"""GHNs that others published: their names, and where their files are found.

A file comes from the directory that GHN_WEIGHTS names, where it may lie under its own name, or else from the Hugging
Face hub, whose library keeps it in its own cache.
"""

import hashlib
import importlib
import logging
import os
import pathlib
import re
from typing import Any, NamedTuple

from ghn_jax.runtime.errors import check_directory
from ghn_jax.runtime.extras import extra

DIRECTORY = "GHN_WEIGHTS"
"""The environment variable that names a directory of files."""

_GHN3 = "SamsungSAILMontreal/ghn3"
_PPUDA = "facebookresearch/ppuda"


class Published(NamedTuple):
    """A published GHN.

    Attributes:
      files: its names in a directory, the usual one first.
      description: what it is.
      hub: its repository on the Hugging Face hub, where it has the first name; None if it is not there.
      source: the repository that it comes from, for those who look for it.
    """

    files: tuple[str, ...]
    description: str
    hub: str | None
    source: str


class Found(NamedTuple):
    """A published GHN's file here, and what is known of it besides."""

    path: pathlib.Path
    facts: dict[str, Any]


def _on_hub(file: str, description: str, *others: str) -> Published:
    return Published((file, *others), f"{description}, ImageNet", _GHN3, f"{_GHN3} on the Hugging Face hub")


def _in_ppuda(name: str, description: str) -> Published:
    return Published((f"{name}.pt", f"checkpoints/{name}.pt"), description, None, f"{_PPUDA}, checkpoints/")


GHNS = {
    "ghn3tm8": _on_hub("ghn3tm8.pt", "GHN-3-T, 6.9 M weights"),
    "ghn3sm8": _on_hub("ghn3sm8.pt", "GHN-3-S, 35.8 M weights"),
    "ghn3lm8": _on_hub("ghn3lm8.pt", "GHN-3-L, 214.7 M weights"),
    "ghn3xlm16": _on_hub("ghn3xlm16.pt", "GHN-3-XL, 654.4 M weights"),
    "ghn2-imagenet": _on_hub("ghn2.pt", "GHN-2", "ghn2_imagenet.pt", "checkpoints/ghn2_imagenet.pt"),
    "ppuda-ghn2-cifar10": _in_ppuda(
        "ghn2_cifar10", "GHN-2, CIFAR-10"
    ),  # the short name is of one that is bundled
    "ghn1-cifar10": _in_ppuda("ghn1_cifar10", "GHN-1, CIFAR-10"),
    "ghn1-imagenet": _in_ppuda("ghn1_imagenet", "GHN-1, ImageNet"),
    "mlp-cifar10": _in_ppuda("mlp_cifar10", "MLP baseline, CIFAR-10"),
}
"""By name."""


def find(name: str, revision: str | None = None) -> Found:
    """The file of a published GHN.

    Args:
      name: one of `GHNS`.
      revision: of the hub's repository: a commit, branch or tag.

    Raises ValueError, which says where to put which file, if it can be had neither from a directory nor from the hub,
    and for a damaged copy of the hub's.
    """
    ghn = GHNS[name]
    directory = os.environ.get(DIRECTORY)
    if directory is not None and revision is None:
        check_directory(DIRECTORY, pathlib.Path(directory), "give the directory of the files, or unset it")
        for file in ghn.files:
            path = pathlib.Path(directory) / file
            if path.is_file():
                return Found(path, {"name": name})
    if ghn.hub is None:
        raise _not_here(name, "is not on the Hugging Face hub")
    return _from_hub(name, ghn.hub, ghn.files[0], revision)


def _from_hub(name: str, repository: str, file: str, revision: str | None) -> Found:
    try:
        with extra("hub"):
            hub: Any = importlib.import_module("huggingface_hub")
            errors: Any = importlib.import_module("huggingface_hub.errors")
    except ValueError as error:
        raise _not_here(name, f"is on the Hugging Face hub, but {error}") from error
    try:
        download = hub.hf_hub_download  # imports more, which sets the level of messages
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each of its attempts
        path = pathlib.Path(download(repository, file, revision=revision))
    except errors.RevisionNotFoundError as error:
        raise ValueError(
            f"`ckpt` (={name}@{revision}) names no revision of {repository}: leave it out"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise _not_here(name, f"cannot be had from the Hugging Face hub ({first_line})") from error
    commit = path.parent.name
    digest = _sha256(path)
    if re.fullmatch("[0-9a-f]{64}", path.resolve().name) and digest != path.resolve().name:
        raise ValueError(
            f"`ckpt` (={name!r}) is damaged in the hub's cache: remove {str(path.resolve())!r} to get it again"
        )
    return Found(path, {"name": name, "repository": repository, "revision": commit, "sha256": digest})


def _not_here(name: str, why: str) -> ValueError:
    ghn = GHNS[name]
    place = os.environ.get(DIRECTORY)
    where = f"into {place!r} ({DIRECTORY})" if place else f"into a directory and set {DIRECTORY} to it"
    return ValueError(f"`ckpt` (={name!r}) {why}: put {ghn.files[0]}, from {ghn.source}, {where}")


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

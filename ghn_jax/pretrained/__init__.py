"""Trained GHNs: bundled and published ones by name, others by path.

`load` reads this project's files and runs, and the files of the public PyTorch code in every format in circulation.
"""

import hashlib
import pathlib
from collections.abc import Sequence

from ghn_jax.pretrained import published
from ghn_jax.pretrained.files import TrainedGHN, config_from_dict, read_ghn, save
from ghn_jax.runtime.errors import unknown_name

__all__ = ["DEFAULT", "TrainedGHN", "bundled", "config_from_dict", "list_ghns", "load", "save"]

_HERE = pathlib.Path(__file__).parent

DEFAULT = "ghn2-cifar10"
"""The GHN that predicts unless another is named."""


def bundled() -> list[str]:
    """Names of the GHNs that come with the package."""
    return sorted(path.stem for path in _HERE.glob("*.safetensors"))


def list_ghns() -> dict[str, str]:
    """The names that `load` knows, and what each is."""
    return dict.fromkeys(bundled(), "bundled") | {
        name: ghn.description for name, ghn in published.GHNS.items()
    }


def load(source: str | pathlib.Path) -> TrainedGHN:
    """Loads a GHN: a bundled or published name, a file, or the work directory of a training run (its best checkpoint).

    Published GHNs come from the directory that the environment variable GHN_WEIGHTS names, or else from the Hugging
    Face hub, of which "NAME@REVISION" asks for a revision. Of files, no code is ever run.

    Raises ValueError for a name that is none of these, for one that can be had neither here nor there, and for a file
    that is damaged or no GHN.
    """
    check_name(source)
    path = pathlib.Path(source)
    if str(source) in bundled():  # rather than a folder of that name, which is ./NAME
        path = _HERE / f"{source}.safetensors"
        _check_whole(path)
        return read_ghn(path)
    if path.is_dir():
        from ghn_jax.pretrained.runs import load_weights  # orbax takes a second to import

        params, meta = load_weights(path)
        if not isinstance(meta.get("config"), dict):
            raise ValueError(
                f"`ckpt` (={str(source)!r}) holds a run of another kind: give one that trained a GHN"
            )
        return TrainedGHN(config_from_dict(meta["config"]), params, meta["info"])
    if path.exists():
        return read_ghn(path)
    name, _, revision = str(source).partition("@")
    found = published.find(name, revision or None)
    ghn = read_ghn(found.path)
    return ghn._replace(info=ghn.info | found.facts)


def check_name(source: str | pathlib.Path, argument: str = "ckpt", others: Sequence[str] = ()) -> None:
    """Raises ValueError for what is neither a name that `load` knows, nor one of `others`, nor the path of anything."""
    names, path = [*others, *list_ghns()], pathlib.Path(source)
    if str(source) in names or str(source).partition("@")[0] in published.GHNS or path.exists():
        return
    if path.name == str(source) and path.suffix == "":
        raise unknown_name(argument, source, [*names, "the path of a run or file"])
    raise ValueError(
        f"`{argument}` (={str(source)!r}) does not exist: give a name ({', '.join(names)}) or a path"
    )


def _check_whole(path: pathlib.Path) -> None:
    """Raises ValueError for a bundled file that is not as it was released."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    lines = (_HERE / "SHA256SUMS").read_text().splitlines()
    known = {name: listed for listed, name in map(str.split, lines)}
    if known.get(path.name) != digest:
        raise ValueError(
            f"`ckpt` (={path.stem!r}) is damaged (the checksum of {path} differs): install ghn_jax again"
        )

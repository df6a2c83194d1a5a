"""The files in which DeepNets-1M is published: an HDF5 file of graphs, and a JSON file of what they are made from."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ghn_jax.deepnets.image_sizes import CIFAR_SIZE
from ghn_jax.runtime.extras import extra

with extra("train"):
    import h5py


def records(path: Path, split: str, image_size: int) -> list[dict[str, Any]]:
    """Arguments of each network from the meta file, once the HDF5 file is known to have as many graphs."""
    nets = read_meta(path, split)["nets"]
    try:
        with h5py.File(path) as file:
            group: Any = file[split]
            num = len(group)
    except (KeyError, OSError, RuntimeError) as error:
        raise damaged(path, str(error)) from error
    if num != len(nets):
        raise damaged(path, f"it has {num} graphs, its meta file {len(nets)}")
    if split == "wide":  # stored with the channels of `test`
        factor = 4 if image_size == CIFAR_SIZE else 2
        nets = [net | {"C": factor * net.get("C", 32)} for net in nets]
    return nets


def read_meta(path: Path, split: str) -> dict[str, Any]:
    """What the meta file beside an HDF5 file says of a split."""
    splits = read_splits(path)
    if split not in splits:
        raise ValueError(f"`split` (={split!r}) is not in {_meta(path)}, which holds {', '.join(splits)}")
    return splits[split]


def read_splits(path: Path) -> dict[str, Any]:
    """What the meta file beside an HDF5 file says, by split."""
    meta = _meta(path)
    try:
        return json.loads(meta.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"`path` (={str(path)!r}) lacks {meta.name} beside it: get both files") from error
    except ValueError as error:
        raise damaged(meta, str(error)) from error


def _meta(path: Path) -> Path:
    return path.with_name(f"{path.stem}_meta.json")


def damaged(path: Path, reason: str) -> ValueError:
    """The error for a file that cannot be read."""
    return ValueError(f"{path} is damaged or incomplete: {reason}; get it again")


def label(vocabulary: Mapping[str, Mapping[str, str]], node: Sequence[int]) -> tuple[str, str | None]:
    """Primitive and parameter name of a stored node, given as (primitive, cell, name within the cell)."""
    primitive = vocabulary["primitives_ext"][str(node[0])].replace("fc-b", "bias")
    primitive = re.sub(r"(_\d+x\d+)+$", "", primitive)
    name = vocabulary["unique_op_names"][str(node[2])]
    if "." not in name or "pool" in primitive:
        return primitive, None
    # two spellings of older files
    name = re.sub(r"^(_ops\.\d+)\.(\d)", r"\1.op.\2", name)
    name = re.sub(r"to_out\.0\.$", "to_out.0.weight", name)
    return primitive, name if re.match("stem|pos_enc|classifier", name) else f"cells.{node[1]}.{name}"


def structure(num_nodes: int, senders: Iterable[int], receivers: Iterable[int]) -> list[int]:
    """Weisfeiler-Leman colours of a graph without labels: equal, but for rare ties, only for equal graphs."""
    edges = list(zip(map(int, senders), map(int, receivers), strict=True))
    colors, num_colors = [0] * num_nodes, 0
    while len(set(colors)) > num_colors:
        num_colors = len(set(colors))
        before: list[list[int]] = [[] for _ in colors]
        after: list[list[int]] = [[] for _ in colors]
        for sender, receiver in edges:
            before[receiver].append(colors[sender])
            after[sender].append(colors[receiver])
        around = zip(colors, before, after, strict=True)
        colors = [hash((color, tuple(sorted(b)), tuple(sorted(a)))) for color, b, a in around]
    return sorted(colors)

"""Splits of DeepNets-1M on disk: one JSON line an architecture, or the official HDF5 files.

An architecture is a pure function of (seed, split, index), see `ghn_jax.deepnets.sampling`; a stored split is a copy,
to share or to keep. Graphs are not stored, since `ghn_jax.deepnets.lowering.lower` makes them in a millisecond.
Files are written by `python -m datasets.deepnets1m`, from a clone.
"""

import json
import operator
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, overload

import numpy as np
from jaxtyping import Int64

from ghn_jax.deepnets import official_files
from ghn_jax.deepnets.architectures import Architecture
from ghn_jax.deepnets.image_sizes import CIFAR_SIZE
from ghn_jax.deepnets.lowering import lower
from ghn_jax.deepnets.sampling import SPLITS
from ghn_jax.graphs import PRIMITIVES
from ghn_jax.runtime.errors import unknown_name
from ghn_jax.runtime.extras import extra

with extra("train"):
    import h5py

FORMAT = "ghn_jax.deepnets1m"
VERSION = 1


class OutsideSplit(ValueError, IndexError):
    """An index beyond the architectures of a split."""


class Header(NamedTuple):
    """The first line of a file: what its architectures are a function of."""

    split: str
    num: int
    seed: int
    image_size: int
    format: str = FORMAT
    version: int = VERSION


class DeepNets1M(Sequence[Architecture]):
    """The architectures of a stored split; made by `open_split`.

    Attributes:
      split: name of the split.
      source: the file they are read from.
    """

    def __init__(self, split: str, source: Path, records: Sequence[Mapping[str, Any]]):
        self.split = split
        self.source = source
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Architecture: ...
    @overload
    def __getitem__(self, index: slice) -> list[Architecture]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Architecture | list[Architecture]:
        """One architecture, or a list of them.

        Raises:
          OutsideSplit: there is no architecture with that index, which is not to be negative.
          ValueError: its place in the file is damaged, or it is none that can be built.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise OutsideSplit(
                f"`index` (={index}) is outside the split {self.split!r} in {self.source}: "
                f"choose from 0 to {len(self) - 1}"
            )
        try:
            return Architecture.from_dict(self._records[index])
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.source} is damaged at architecture {index} of the split {self.split!r}: {error}; "
                "remove the file and get or write it again"
            ) from error


def open_split(path: Path | str, split: str, image_size: int = CIFAR_SIZE) -> DeepNets1M:
    """Opens a split for networks on images of this size.

    Args:
      path: a file of `datasets.deepnets1m`; or an official deepnets1m_*.hdf5 with deepnets1m_*_meta.json beside it
        (deepnets1m_eval holds all splits but train and search); or the directory of such files.
      image_size: must be that of a file of `datasets.deepnets1m`; the official `wide` networks depend on it.

    Raises:
      ValueError: the split is unknown, or the file is missing, incomplete, damaged, or made for another size.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    path = Path(path)
    existing = _files(path, split)
    if not existing:
        header = Header(split, SPLITS[split].size, 0, image_size)
        what = f"has no split {split!r}" if path.exists() else "does not exist"
        raise ValueError(
            f"`path` (={str(path)!r}) {what}: put the official files there, or write it with "
            f"`{write_command(header, path.parent if path.suffix else path)}`"
        )
    source = existing[0]
    if source.suffix == ".hdf5":
        return DeepNets1M(split, source, official_files.records(source, split, image_size))
    return DeepNets1M(split, source, _Lines(source, split, image_size))


def has_split(path: Path, split: str) -> bool:
    """Whether a directory, or a file, has a split; of one that several share, its meta file says so."""
    files = _files(path, split)
    if not files or not files[0].name.startswith("deepnets1m_eval"):
        return bool(files)
    return split in official_files.read_splits(files[0])


def _files(path: Path, split: str) -> list[Path]:
    """Files that may hold a split, the first one first."""
    names = [f"deepnets1m_{split}.jsonl", f"deepnets1m_{split}.hdf5", "deepnets1m_eval.hdf5"]
    candidates = [path / name for name in names] if path.is_dir() else [path]
    return [file for file in candidates if file.is_file()]


class Agreement(NamedTuple):
    """How official graphs compare with those rebuilt from the genotypes.

    Attributes:
      num: graphs compared.
      other_size: indices of those with another number of nodes.
      other_graph: indices of those with as many nodes, but other ones or other edges.
    """

    num: int
    other_size: tuple[int, ...]
    other_graph: tuple[int, ...]

    @property
    def share(self) -> float:
        """Share of equal graphs, from 0 to 1."""
        return 1 - (len(self.other_size) + len(self.other_graph)) / self.num


def verify(nets: DeepNets1M, indices: Iterable[int] | None = None) -> Agreement:
    """Compares graphs stored in an official file with those rebuilt: primitives, parameter names, edges.

    The public generator writes nodes cell by cell, but the adjacency in topological order, so nodes and
    one-hop edges are compared each by themselves. With recent PyTorch it also loses nodes of attention and
    squeeze-excitation: such networks disagree.

    Args:
      indices: architectures to compare; by default all.

    Raises:
      ValueError: `nets` has no stored graphs, or the file is damaged.
    """
    if nets.source.suffix != ".hdf5":
        raise ValueError(f"`nets` is from {nets.source}, which has no graphs: open an official .hdf5 file")
    num, other_size, other_graph = 0, [], []
    vocabulary = official_files.read_meta(nets.source, nets.split)["meta"]
    with h5py.File(nets.source) as file:
        for index in range(len(nets)) if indices is None else indices:
            graph = lower(nets[index]).graph
            try:
                group: Any = file[f"{nets.split}/{index}"]
                nodes, hops = group["nodes"][()], group["adj"][()]
            except (KeyError, OSError, RuntimeError) as error:
                raise official_files.damaged(nets.source, f"graph {index} cannot be read: {error}") from error
            num += 1
            if len(nodes) != graph.num_nodes:
                other_size.append(index)
                continue
            labels = Counter(zip((PRIMITIVES[p] for p in graph.primitives), graph.names, strict=True))
            same_nodes = labels == Counter(official_files.label(vocabulary, node) for node in nodes.tolist())
            structure = official_files.structure(graph.num_nodes, graph.senders, graph.receivers)
            if not same_nodes or structure != official_files.structure(len(nodes), *np.nonzero(hops == 1)):
                other_graph.append(index)
    return Agreement(num, tuple(other_size), tuple(other_graph))


# -- our files -----------------------------------------------------------------------------------------------


class _Lines(Sequence[Mapping[str, Any]]):
    """The architectures of a whole file, parsed when asked for; the file is not kept open."""

    def __init__(self, path: Path, split: str, image_size: int):
        header, ends = scan(path)
        if header.split != split:
            raise ValueError(f"`split` (={split!r}) is not in {path}, which holds {header.split!r}")
        if header.image_size != image_size:
            raise ValueError(
                f"`image_size` (={image_size}) differs: {path} was made for {header.image_size}; "
                f"write one with `{write_command(header._replace(image_size=image_size), path.parent)}`"
            )
        if len(ends) - 1 != header.num or ends[-1] != path.stat().st_size:
            raise ValueError(
                f"{path} has {len(ends) - 1} of {header.num} architectures: complete it with "
                f"`{write_command(header, path.parent)}`"
            )
        self._path = path
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        with self._path.open("rb") as file:
            file.seek(int(self._ends[index]))
            record = json.loads(file.readline())
        if record.get("index") != index:
            raise ValueError(f"number {record.get('index')} stands in its place")
        return record


def scan(path: Path) -> tuple[Header, Int64[np.ndarray, " line"]]:
    """The header, and where it and each whole line after it ends."""
    with path.open("rb") as file:
        first = file.readline()
        lengths = [len(first), *(len(line) for line in file if line[-1:] == b"\n")]
    try:
        header = Header(**json.loads(first))
        known = header.format == FORMAT and header.version == VERSION
    except (ValueError, TypeError):
        known = False
    if not known:
        raise ValueError(f"{path} is no file of {FORMAT}, version {VERSION}: move it away, or give another")
    return header, np.cumsum(lengths, dtype=np.int64)


def write_command(header: Header, out: Path) -> str:
    """What writes a split to the directory `out`."""
    return (
        f"python -m datasets.deepnets1m --split={header.split} --num={header.num} --out={shlex.quote(str(out))} "
        f"--seed={header.seed} --image_size={header.image_size}"
    )

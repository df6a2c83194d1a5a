"""DeepNets-1M on disk: splits written as one JSON line per architecture, and the official HDF5 files read.

An architecture is a pure function of (seed, split, index), see `ghn_jax.sampling`; a stored split is a copy,
to share or to keep. Graphs are not stored, since `ghn_jax.lowering.lower` makes them in a millisecond.

Command line: `python -m datasets.deepnets1m --split=val --num=500 --out=DIR [--seed=0] [--image_size=32]`.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 3.
"""

import json
import operator
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, overload

import h5py
import numpy as np
import tyro
from jaxtyping import Int64

from datasets import official
from ghn_jax import commands
from ghn_jax.architectures import Architecture
from ghn_jax.errors import unknown_name
from ghn_jax.graphs import PRIMITIVES
from ghn_jax.lowering import CIFAR_SIZE, IMAGE_SIZES, lower
from ghn_jax.sampling import SPLITS, sample

FORMAT = "ghn_jax.deepnets1m"
VERSION = 1

Progress = Callable[[int, int], None]
"""Is told how many architectures are written, and of how many."""


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


def write_split(
    out: Path,
    split: str,
    num: int,
    seed: int = 0,
    image_size: int = CIFAR_SIZE,
    progress: Progress = lambda done, num: None,
) -> Path:
    """Writes the first `num` architectures of a split to `out`/deepnets1m_SPLIT.jsonl, which it returns.

    An interrupted call, even a killed one, is continued by the same call; the file then has the same bytes as
    if it had run through.

    Args:
      out: directory, made if missing.
      seed: see `ghn_jax.sampling.sample`.
      image_size: see there too.
      progress: follows the writing.

    Raises:
      ValueError: an argument is out of range, or the file exists and was made with other arguments, with
        another version of this library, or is damaged; nothing is written then.
    """
    header = _checked(Header(split, num, seed, image_size))
    path = out / f"deepnets1m_{split}.jsonl"

    def line(index: int) -> bytes:
        return _line({"index": index, **sample(split, index, seed, image_size).to_dict()})

    done, size = _written(path, header, line) if path.exists() else (0, 0)
    if done == num and size == path.stat().st_size:
        return path
    out.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.truncate(size)
        if size == 0:
            file.write(_line(header._asdict()))
        for index in range(done, num):
            file.write(line(index))
            progress(index + 1, num)
    return path


def open_split(path: Path | str, split: str, image_size: int = CIFAR_SIZE) -> DeepNets1M:
    """Opens a split for networks on images of this size.

    Args:
      path: a file of `write_split`; or an official deepnets1m_*.hdf5 with deepnets1m_*_meta.json beside it
        (deepnets1m_eval holds all splits but train and search); or the directory of such files.
      image_size: must be that of a file of `write_split`; the official `wide` networks depend on it.

    Raises:
      ValueError: the split is unknown, or the file is missing, incomplete, damaged, or made for another size.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    path = Path(path)
    names = [f"deepnets1m_{split}.jsonl", f"deepnets1m_{split}.hdf5", "deepnets1m_eval.hdf5"]
    candidates = [path / name for name in names] if path.is_dir() else [path]
    existing = [file for file in candidates if file.is_file()]
    if not existing:
        header = Header(split, SPLITS[split].size, 0, image_size)
        raise ValueError(
            f"`path` (={str(path)!r}) has no split {split!r}: put the official files there, or write it with "
            f"`{_command(header, path.parent if path.suffix else path)}`"
        )
    source = existing[0]
    if source.suffix == ".hdf5":
        return DeepNets1M(split, source, official.records(source, split, image_size))
    return DeepNets1M(split, source, _Lines(source, split, image_size))


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
    vocabulary = official.read_meta(nets.source, nets.split)["meta"]
    with h5py.File(nets.source) as file:
        for index in range(len(nets)) if indices is None else indices:
            graph = lower(nets[index]).graph
            try:
                group: Any = file[f"{nets.split}/{index}"]
                nodes, hops = group["nodes"][()], group["adj"][()]
            except (KeyError, OSError, RuntimeError) as error:
                raise official.damaged(nets.source, f"graph {index} cannot be read: {error}") from error
            num += 1
            if len(nodes) != graph.num_nodes:
                other_size.append(index)
                continue
            labels = Counter(zip((PRIMITIVES[p] for p in graph.primitives), graph.names, strict=True))
            same_nodes = labels == Counter(official.label(vocabulary, node) for node in nodes.tolist())
            structure = official.structure(graph.num_nodes, graph.senders, graph.receivers)
            if not same_nodes or structure != official.structure(len(nodes), *np.nonzero(hops == 1)):
                other_graph.append(index)
    return Agreement(num, tuple(other_size), tuple(other_graph))


# -- our files -----------------------------------------------------------------------------------------------


class _Lines(Sequence[Mapping[str, Any]]):
    """The architectures of a whole file, parsed when asked for; the file is not kept open."""

    def __init__(self, path: Path, split: str, image_size: int):
        header, ends = _scan(path)
        if header.split != split:
            raise ValueError(f"`split` (={split!r}) is not in {path}, which holds {header.split!r}")
        if header.image_size != image_size:
            raise ValueError(
                f"`image_size` (={image_size}) differs: {path} was made for {header.image_size}; "
                f"write one with `{_command(header._replace(image_size=image_size), path.parent)}`"
            )
        if len(ends) - 1 != header.num or ends[-1] != path.stat().st_size:
            raise ValueError(
                f"{path} has {len(ends) - 1} of {header.num} architectures: complete it with "
                f"`{_command(header, path.parent)}`"
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


def _scan(path: Path) -> tuple[Header, Int64[np.ndarray, " line"]]:
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
        raise ValueError(f"{path} is no file of {FORMAT}, version {VERSION}: remove it and write it again")
    return header, np.cumsum(lengths, dtype=np.int64)


def _written(path: Path, header: Header, line: Callable[[int], bytes]) -> tuple[int, int]:
    """How many architectures an unfinished file has, and how many of its bytes are whole lines."""
    beginning = _line(header._asdict())
    with path.open("rb") as file:
        if beginning.startswith(file.read(len(beginning))) and path.stat().st_size < len(beginning):
            return 0, 0  # killed while it wrote the header
    found, ends = _scan(path)
    differing = [name for name in Header._fields if getattr(found, name) != getattr(header, name)]
    if differing:
        made = ", ".join(f"`{name}` (={getattr(found, name)!r})" for name in differing)
        asked = ", ".join(f"`{name}` (={getattr(header, name)!r})" for name in differing)
        raise ValueError(f"{asked} cannot continue {path}, made with {made}: use these, or another `out`")
    done = len(ends) - 1
    with path.open("rb") as file:
        file.seek(ends[-2] if done else 0)
        last = file.readline()
    if done > header.num or (done and last != line(done - 1)):
        raise ValueError(
            f"{path} is damaged, or another version of this library made it: its architecture {done - 1} is "
            "not the one sampled now; remove it, or use another `out`"
        )
    return done, int(ends[-1])


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _checked(header: Header) -> Header:
    if header.split not in SPLITS:
        raise unknown_name("split", header.split, SPLITS)
    size = SPLITS[header.split].size
    if not 1 <= header.num <= size:
        raise ValueError(f"`num` (={header.num}) must be from 1 to {size}, the size of {header.split!r}")
    if header.seed < 0:
        raise ValueError(f"`seed` (={header.seed}) must not be negative")
    if header.image_size not in IMAGE_SIZES:
        sizes = " or ".join(map(str, IMAGE_SIZES))
        raise ValueError(f"`image_size` (={header.image_size}) must be {sizes}")
    return header


def _command(header: Header, out: Path) -> str:
    return (
        f"python -m datasets.deepnets1m --split={header.split} --num={header.num} --out={out} "
        f"--seed={header.seed} --image_size={header.image_size}"
    )


# -- command line --------------------------------------------------------------------------------------------


def write(split: str, num: int, out: Path, seed: int = 0, image_size: int = CIFAR_SIZE) -> None:
    """Writes a split; run again to continue after an interruption.

    Args:
      split: train, val, test, wide, deep, dense, bnfree or search.
      num: number of architectures.
      out: directory to write to.
      seed: of the sampled architectures.
      image_size: 32 or 224 pixels.
    """
    path = write_split(out, split, num, seed, image_size, _progress_line())
    print(f"{path}: {num} architectures, {path.stat().st_size / 1e6:.1f} MB")


def _progress_line(interval: float = 1.0) -> Progress:
    """Rewrites a line on stderr, every `interval` seconds."""
    start = shown = time.monotonic()
    first: int | None = None

    def show(done: int, num: int) -> None:
        nonlocal shown, first
        first = done - 1 if first is None else first
        now = time.monotonic()
        if done == num or now - shown > interval:
            shown = now
            rate = (done - first) / max(now - start, 1e-9)
            line = f"{done} of {num}, {rate:.0f} a second, {(num - done) / rate:.0f} s left"
            print(f"\r{line:60}", end="\n" if done == num else "", file=sys.stderr, flush=True)

    return show


def main() -> None:
    """Runs the command line."""
    with commands.errors_as_lines():
        tyro.cli(write, prog="python -m datasets.deepnets1m", use_underscores=True)


if __name__ == "__main__":
    main()

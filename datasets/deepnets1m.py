"""Writes splits of DeepNets-1M, one JSON line an architecture; `ghn_jax.deepnets.stored` reads them.

Command line: `python -m datasets.deepnets1m --split=val --num=500 --out=DIR [--seed=0] [--image_size=32]`.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 3.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ghn_jax.deepnets.image_sizes import CIFAR_SIZE, IMAGE_SIZES
from ghn_jax.deepnets.sampling import SPLITS, sample
from ghn_jax.deepnets.stored import Header, scan
from ghn_jax.runtime import commands, outputs
from ghn_jax.runtime.errors import check_range, unknown_name

Progress = Callable[[int, int], None]
"""Is told how many architectures are written, and of how many."""


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
      seed: see `ghn_jax.deepnets.sampling.sample`.
      image_size: see there too.
      progress: follows the writing.

    Raises:
      ValueError: an argument is out of range, or the file exists and was made with other arguments, with
        another version of this library, or is damaged; nothing is written then.
    """
    header = _checked(Header(split, num, seed, image_size))
    outputs.check_directory("out", out)
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


def _written(path: Path, header: Header, line: Callable[[int], bytes]) -> tuple[int, int]:
    """How many architectures an unfinished file has, and how many of its bytes are whole lines."""
    beginning = _line(header._asdict())
    with path.open("rb") as file:
        if beginning.startswith(file.read(len(beginning))) and path.stat().st_size < len(beginning):
            return 0, 0  # killed while it wrote the header
    found, ends = scan(path)
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
    check_range("seed", header.seed, 0)
    if header.image_size not in IMAGE_SIZES:
        sizes = " or ".join(map(str, IMAGE_SIZES))
        raise ValueError(f"`image_size` (={header.image_size}) must be {sizes}")
    return header


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
    commands.call("python -m datasets.deepnets1m", {"": write})


if __name__ == "__main__":
    main()

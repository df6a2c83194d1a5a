"""Compiled programs on disk."""

import pathlib

import jax
import pytest
from commands_in_forks import Done, Forks

from ghn_jax.runtime import compilation

PROGRAM = """
import pathlib, sys
import jax
from ghn_jax.runtime import compilation
compilation.use_persistent_cache(pathlib.Path(sys.argv[1]))
counter = compilation.CompilationCounter()
counter.register()
jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()
print(counter.count)
"""


def started(forks: Forks, directory: pathlib.Path) -> Done:
    done = forks.run("python", "-c", PROGRAM, directory)
    assert done.returncode == 0, done.stderr
    return done


def compiled(forks: Forks, directory: pathlib.Path) -> int:
    return int(started(forks, directory).stdout)


def test_programs_are_found_where_the_directory_is_moved_to(forks: Forks, tmp_path: pathlib.Path):
    assert compiled(forks, tmp_path / "before") > 0
    (tmp_path / "before").rename(tmp_path / "after")
    assert compiled(forks, tmp_path / "after") == 0


def test_damaged_programs_are_replaced(forks: Forks, tmp_path: pathlib.Path):
    number = compiled(forks, tmp_path)
    entries = sorted(tmp_path.glob("*-cache"))
    whole = [path.read_bytes() for path in entries]
    cut, garbled, *_ = [*entries, entries[-1]] if len(entries) > 1 else [*entries, *entries]
    cut.write_bytes(cut.read_bytes()[:-20])
    data = bytearray(garbled.read_bytes())
    data[len(data) // 2] ^= 4
    garbled.write_bytes(data)
    again = started(forks, tmp_path)
    assert int(again.stdout) == len({cut, garbled}) <= number
    assert again.stderr.count("UserWarning") == 1 and "were damaged: they are compiled again" in again.stderr
    assert sorted(tmp_path.glob("*-cache")) == entries
    assert [len(path.read_bytes()) > 100 for path in entries] == [True] * len(whole)
    last = started(forks, tmp_path)
    assert (last.stdout, last.stderr) == ("0\n", "")


def test_programs_that_another_library_compressed_are_left(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        compilation, "decompress", None
    )  # as before Python 3.14, where jax takes zstandard if it is there
    (tmp_path / "of_zstandard-cache").write_bytes(bytes.fromhex("28b52ffd") + b"whatever")
    (tmp_path / "garbled-cache").write_bytes(b"whatever")
    assert compilation.remove_damaged(tmp_path) == 1
    assert [path.name for path in tmp_path.glob("*-cache")] == ["of_zstandard-cache"]


def test_a_directory_that_cannot_be_written_is_one_warning():
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore
    with pytest.warns(UserWarning, match=r"/proc/no cannot be written .*give another --compilation_cache"):
        compilation.use_persistent_cache(pathlib.Path("/proc/no"))
    assert jax.config.jax_compilation_cache_dir == before  # pyright: ignore

"""Compiled programs on disk."""

import pathlib
import subprocess
import sys

import jax
import pytest

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


def compiled(directory: pathlib.Path) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, directory], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_programs_are_found_where_the_directory_is_moved_to(tmp_path: pathlib.Path):
    assert compiled(tmp_path / "before") > 0
    (tmp_path / "before").rename(tmp_path / "after")
    assert compiled(tmp_path / "after") == 0


def test_a_directory_that_cannot_be_written_is_one_warning():
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore
    with pytest.warns(UserWarning, match=r"/proc/no cannot be written .*give another --compilation_cache"):
        compilation.use_persistent_cache(pathlib.Path("/proc/no"))
    assert jax.config.jax_compilation_cache_dir == before  # pyright: ignore

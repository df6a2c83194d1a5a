"""Stored splits: writing, resuming, reading, the official files, and what is told about bad ones."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from datasets import deepnets1m
from datasets.deepnets1m import write_split
from ghn_jax.deepnets.architectures import Architecture
from ghn_jax.deepnets.lowering import lower
from ghn_jax.deepnets.sampling import sample
from ghn_jax.deepnets.stored import open_split, verify
from ghn_jax.graphs import PRIMITIVES, path_lengths


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> bytes:
    """Content of the file with 20 `val` architectures."""
    return write_split(tmp_path_factory.mktemp("written"), "val", 20).read_bytes()


def place(directory: Path, content: bytes, split: str = "val") -> Path:
    path = directory / f"deepnets1m_{split}.jsonl"
    path.write_bytes(content)
    return path


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["deepnets1m", *map(str, arguments)])
    try:
        deepnets1m.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def write_official(
    directory: Path, splits: dict[str, list[Architecture]], lost: str | None = None, name: str = "eval"
) -> Path:
    """Writes architectures in the official format; graphs lack the nodes of primitive `lost`."""
    primitives, names, meta = list(PRIMITIVES), [], {}
    with h5py.File(directory / f"deepnets1m_{name}.hdf5", "w") as file:
        for split, archs in splits.items():
            for index, arch in enumerate(archs):
                graph = lower(arch).graph
                kept = [i for i, p in enumerate(graph.primitives) if PRIMITIVES[p] != lost]
                nodes = []
                for i in kept:
                    full = graph.names[i] or PRIMITIVES[graph.primitives[i]]
                    _, cell, name_in_cell = full.split(".", 2) if full.startswith("cells.") else ("", 0, full)
                    names += [] if name_in_cell in names else [name_in_cell]
                    nodes.append([graph.primitives[i], int(cell), names.index(name_in_cell)])
                file[f"{split}/{index}/nodes"] = np.array(nodes, np.uint16)
                file[f"{split}/{index}/adj"] = path_lengths(graph, 250)[np.ix_(kept, kept)]
            nets = [arch.to_dict() for arch in archs]
            meta[split] = {"nets": nets, "meta": {"primitives_ext": dict(enumerate(primitives))}}
    for split in meta.values():
        split["meta"]["unique_op_names"] = dict(enumerate(names))
    (directory / f"deepnets1m_{name}_meta.json").write_text(json.dumps(meta))
    return directory / f"deepnets1m_{name}.hdf5"


# -- our files ---------------------------------------------------------------------------


def test_written_split_reads_back(tmp_path, written):
    path = place(tmp_path, written)
    for nets in (open_split(tmp_path, "val"), open_split(str(path), "val")):
        assert (len(nets), nets.split, nets.source) == (20, "val", path)
        assert list(nets) == [sample("val", index) for index in range(20)]
        assert nets[np.int64(7)] == nets[5:10][2] == sample("val", 7)
    assert len(written) / 20 < 400  # bytes, for a million to take less than 400 MB


def test_header_tells_what_the_architectures_are_a_function_of(tmp_path):
    path = write_split(tmp_path, "wide", 2, seed=3, image_size=224)
    assert open_split(path, "wide", image_size=224)[1] == sample("wide", 1, 3, 224)
    header = json.loads(path.read_bytes().splitlines()[0])
    assert header | {"format": ""} == {
        "split": "wide",
        "num": 2,
        "seed": 3,
        "image_size": 224,
        "format": "",
        "version": 1,
    }
    with pytest.raises(ValueError, match=r"`image_size` \(=32\) differs: .* was made for 224; .*=32`"):
        open_split(path, "wide")


@pytest.mark.parametrize("size", [0, 10, 92, 93, 1000, -1], ids=lambda size: f"{size}_bytes")
def test_resumed_file_has_the_same_bytes(tmp_path, written, size):
    path = place(tmp_path, written[:size])
    with pytest.raises(ValueError, match=r"is no file of|of 20 architectures: complete it with `python -m"):
        open_split(path, "val")
    done = []
    write_split(tmp_path, "val", 20, progress=lambda now, num: done.append((now, num)))
    assert path.read_bytes() == written
    assert done == [(i + 1, 20) for i in range(max(written[:size].count(b"\n") - 1, 0), 20)]


def test_killed_process_is_continued(tmp_path):
    program = f"""
import os, pathlib, signal
from datasets.deepnets1m import write_split

def kill(done, num):
    if done == 60:
        os.kill(os.getpid(), signal.SIGKILL)

write_split(pathlib.Path({str(tmp_path)!r}), "val", 100, progress=kill)
"""
    root = Path(deepnets1m.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == -signal.SIGKILL
    path = tmp_path / "deepnets1m_val.jsonl"
    lines = path.read_bytes().count(b"\n")
    assert 10 < lines < 62
    write_split(tmp_path, "val", 100)
    assert path.read_bytes() == write_split(tmp_path / "whole", "val", 100).read_bytes()


def test_complete_file_is_left_alone(tmp_path, written, monkeypatch, capsys):
    path = place(tmp_path, written)
    os.utime(path, (0, 0))
    assert run_command(monkeypatch, "--split=val", "--num=20", f"--out={tmp_path}") == 0
    assert path.stat().st_mtime == 0
    assert capsys.readouterr().out == f"{path}: 20 architectures, 0.0 MB\n"


def test_command_shows_its_progress(tmp_path, monkeypatch, capsys):
    assert run_command(monkeypatch, "--split", "test", "--num", 3, "--out", tmp_path / "a" / "b") == 0
    assert "\r3 of 3, " in capsys.readouterr().err
    assert len(open_split(tmp_path / "a" / "b", "test")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split=vall"], "`split` (='vall') is unknown: did you mean 'val'?"),
        (["--num=501"], "`num` (=501) must be from 1 to 500, the size of 'val'"),
        (["--num=0"], "`num` (=0) must be from 1 to 500"),
        (["--seed=-1"], "`seed` (=-1) must not be negative"),
        (["--image_size=64"], "`image_size` (=64) must be 32 or 224"),
        (["--num=30"], "`num` (=30) cannot continue {path}, made with `num` (=20)"),
        (
            ["--seed=1", "--image_size=224"],
            "`seed` (=1), `image_size` (=224) cannot continue {path}, made with",
        ),
    ],
)
def test_command_refuses_in_one_line(tmp_path, written, monkeypatch, capsys, arguments, message):
    path = place(tmp_path, written)
    assert run_command(monkeypatch, "--split=val", "--num=20", f"--out={tmp_path}", *arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: " + message.format(path=path))
    assert output.err.count("\n") == 1 and output.out == ""
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_bytes() == written


@pytest.mark.parametrize("content", [b"images\n", b'{"split":"val"}\n', b'{"version":2}\n', b"[1]\n", b"x"])
def test_foreign_file_is_refused(tmp_path, content):
    path = place(tmp_path, content)
    for call in (lambda: open_split(path, "val"), lambda: write_split(tmp_path, "val", 20)):
        with pytest.raises(ValueError, match=r"is no file of ghn_jax.deepnets1m, version 1: move it away"):
            call()
    assert path.read_bytes() == content


def test_file_that_would_go_on_differently_is_refused(tmp_path, written):
    lines = written.splitlines(keepends=True)
    content = b"".join([*lines[:5], lines[5].replace(b'"index":4', b'"index":9')])
    path = place(tmp_path, content)
    with pytest.raises(ValueError, match="its architecture 4 is not the one sampled now; remove it"):
        write_split(tmp_path, "val", 20)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"{", b"\xff", "codec can't decode"),
        (b'"ks":', b'"ks"', "delimiter"),
        (b'"index":3', b'"index":4', "number 4 stands in its place"),
        (b'"n_cells"', b'"n_sells"', "needs `genotype` and `n_cells`"),
        (b'"normal":[[', b'"normal":[["convolution",0],[', "`genotype.normal"),
        (b'"C":32', b'"C":"x"', "not supported between"),
        (b'{"index":3,', b"[3,", ""),
    ],
)
def test_damaged_architecture_is_named(tmp_path, written, old, new, reason):
    lines = written.splitlines(keepends=True)
    assert old in lines[4]
    path = place(tmp_path, b"".join([*lines[:4], lines[4].replace(old, new, 1), *lines[5:]]))
    nets = open_split(path, "val")
    assert nets[2] == sample("val", 2) and nets[4] == sample("val", 4)
    with pytest.raises(ValueError, match="damaged at architecture 3 of the split 'val'") as error:
        nets[3]
    assert str(path) in str(error.value) and reason in str(error.value)


def test_index_outside_split(tmp_path, written):
    nets = open_split(place(tmp_path, written), "val")
    for index in (20, -1):
        for kind in (ValueError, IndexError):
            with pytest.raises(kind, match=rf"`index` \(={index}\) is outside the split 'val'.*from 0 to 19"):
                nets[index]


def test_what_cannot_be_opened(tmp_path, written):
    with pytest.raises(ValueError, match=r"`split` \(='tset'\) is unknown: did you mean 'test'"):
        open_split(tmp_path, "tset")
    with pytest.raises(ValueError, match=rf"no split 'test': .* `python -m .* --num=500 --out={tmp_path} "):
        open_split(tmp_path, "test")
    with pytest.raises(ValueError, match=rf"--out={tmp_path} "):
        open_split(tmp_path / "missing.jsonl", "test")
    path = place(tmp_path, written, split="test")
    with pytest.raises(ValueError, match=r"`split` \(='test'\) is not in .*, which holds 'val'"):
        open_split(path, "test")


# -- the official files ------------------------------------------------------------------


def test_official_splits(tmp_path):
    archs = {split: [sample(split, index) for index in range(3)] for split in ("val", "test", "deep")}
    write_official(tmp_path, archs | {"wide": archs["test"]})
    write_official(tmp_path, {"train": archs["val"]}, name="train")
    for split in archs:
        nets = open_split(tmp_path, split)
        assert list(nets) == archs[split]
        assert nets.source == tmp_path / "deepnets1m_eval.hdf5"
        assert verify(nets) == (3, (), ())
    assert open_split(tmp_path, "train").source == tmp_path / "deepnets1m_train.hdf5"
    for image_size, factor in ((32, 4), (224, 2)):
        wide = [dataclasses.replace(arch, C=arch.C * factor) for arch in archs["test"]]
        assert list(open_split(tmp_path / "deepnets1m_eval.hdf5", "wide", image_size)) == wide
    with pytest.raises(
        ValueError, match=r"`split` \(='dense'\) is not in .*which holds val, test, deep, wide"
    ):
        open_split(tmp_path, "dense")


def test_official_networks_without_channels_have_32(tmp_path):
    path = write_official(tmp_path, {"val": [sample("val", 0)]})
    meta = path.with_name("deepnets1m_eval_meta.json")
    content = json.loads(meta.read_bytes())
    del content["val"]["nets"][0]["C"]
    meta.write_text(json.dumps(content))
    assert open_split(path, "val")[0].C == 32


def test_verify_reports_the_share_that_agrees(tmp_path):
    archs = [sample("val", index) for index in range(8)]
    nets = open_split(write_official(tmp_path, {"val": archs}, lost="msa"), "val")
    lacking = tuple(index for index, arch in enumerate(archs) if arch.is_vit)
    assert 0 < len(lacking) < 8
    agreement = verify(nets)
    assert agreement == (8, lacking, ())
    assert agreement.share == 1 - len(lacking) / 8
    assert verify(nets, indices=lacking).share == 0

    index = next(index for index, arch in enumerate(archs) if not arch.is_vit)
    with h5py.File(nets.source, "a") as file:
        edges = file[f"val/{index}/adj"]
        assert isinstance(edges, h5py.Dataset)
        edges[0, 1] = 1 - min(int(edges[0, 1]), 1)
    assert verify(nets) == (8, lacking, (index,))


def test_verify_needs_stored_graphs(tmp_path, written):
    with pytest.raises(ValueError, match=r"which has no graphs: open an official \.hdf5 file"):
        verify(open_split(place(tmp_path, written), "val"))


def test_damaged_official_files(tmp_path):
    archs = [sample("val", index) for index in range(2)]
    path = write_official(tmp_path, {"val": archs})
    meta, content = path.with_name("deepnets1m_eval_meta.json"), path.read_bytes()
    nets = open_split(path, "val")

    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{path} is damaged or incomplete: .*truncated.*; get it again"):
        open_split(path, "val")
    path.write_bytes(b"\0" * len(content))
    with pytest.raises(ValueError, match=rf"{path} is damaged or incomplete: .*; get it again"):
        open_split(path, "val")

    path.write_bytes(content)
    with h5py.File(path, "a") as file:
        del file["val/1"]
    with pytest.raises(ValueError, match="it has 1 graphs, its meta file 2"):
        open_split(path, "val")
    with pytest.raises(ValueError, match="graph 1 cannot be read"):
        verify(nets)

    whole = meta.read_text()
    meta.write_text(whole.replace("conv", "convolution"))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} is damaged at architecture 0 of .*: `genotype"):
        open_split(path, "val")[0]
    meta.write_text(whole[:-10])
    with pytest.raises(ValueError, match=rf"{meta} is damaged or incomplete"):
        open_split(path, "val")
    meta.unlink()
    with pytest.raises(ValueError, match=r"lacks deepnets1m_eval_meta.json beside it"):
        open_split(path, "val")

"""What evaluate.py says to options that are wrong, would have no effect, or name what cannot be written."""

import dataclasses
import json
import os
import pathlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import small_run
from ghn_jax import pretrained
from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.lowering import lower
from ghn_jax.evaluation import accuracy as accuracy_module
from ghn_jax.evaluation import report, results
from ghn_jax.evaluation.accuracy import NotFinite, accuracy
from ghn_jax.evaluation.options import EvaluateOptions, count_images, images_header, open_images
from ghn_jax.images.loading import load
from ghn_jax.images.resident import ImageDataset, ImageSplit
from ghn_jax.runtime import commands, outputs
from tests.image_sets import write_folder

REFUSED = {
    "--split=tset": "did you mean 'test'",
    "--arch=resnet51": "did you mean 'resnet50'",
    "--arch=darts --channels=32": "`channels` (=32) has no effect with --arch=darts: leave it out",
    "--arch=darts --seed=3": "`seed` (=3) has no effect",
    "--arch=resnet50 --split=nope": "did you mean",
    "--arch=resnet50 --split=wide": "`split` (='wide') says which images to test resnet50 on: give test or val",
    "--arch=resnet50 --num_archs=2": "`num_archs` (=2) has no effect",
    "--arch=3 --num_archs=2": "`num_archs` (=2) has no effect with --arch=3",
    "--arch=3 --split=predefined": "is no place in --split=predefined",
    "--split=predefined --num_archs=1": "has no effect with --split=predefined",
    "--split=predefined --channels=32": "has no effect with --split=predefined",
    "--draw=graph.svg": "`draw` (=graph.svg) has no effect with --split=test: it needs a model",
    "--export=weights.safetensors": "it needs a model, as --arch=resnet50",
    "--arch=resnet50 --draw=graph.png": "must end in .svg",
    "--arch=resnet50 --export=weights.pt": "ends in .pt: give FILE.safetensors",
    "--arch=resnet50 --export=weights.SAFETENSORS": "ends in .SAFETENSORS",
    "--arch=resnet50 --export=weights.npz": "ends in .npz",
    "--arch=resnet50 --export=/proc/no/weights": "`export` (='/proc/no/weights') cannot be written",
    "--results=/proc/no/r.jsonl": "`results` (='/proc/no/r.jsonl') cannot be written",
    "--results=/": "`results`",
    "--num_archs=0": "`num_archs` (=0) must be at least 1",
    "--num_archs=501": "`num_archs` (=501) must be at least 1, and at most 500",
    "--num_archs=99999999999999999999 --split=table": "at most 2147483647",
    "--num_images=63": "`num_images` (=63) must be at least 64",
    "--channels=20": "multiple of 16",
    "--channels=-16": "must be at least 16",
    "--seed=-1": "must not be negative",
    "--seed=18446744073709551616": "`seed` (=18446744073709551616)",
    "--num_workers=-1": "`num_workers` (=-1) must not be negative",
    "--noise=nan": "`noise` (=nan)",
    "--noise=-1": "must not be negative",
    "--dataset=digit": "did you mean 'digits'",
    "--ckpt=": "`ckpt` is empty: give a value, or leave --ckpt out",
    "--compilation_cache=": "`compilation_cache` is empty",
    "--num_archs=1e3": "could be instantiated from ['1e3']",
    "--num_arches=3": "did you mean '--num_archs'",
}


@pytest.mark.parametrize("line", REFUSED)
def test_refused_in_one_line(line: str):
    with pytest.raises(ValueError) as error:
        commands.parse(EvaluateOptions, line.split()).resolve()
    assert REFUSED[line] in " ".join(str(error.value).split())


def test_images_are_those_of_the_training_and_of_the_results(tmp_path: pathlib.Path):
    write_folder(tmp_path, {split: {"a": 64, "b": 64} for split in ("train", "val", "test")})
    name = f"folder:{tmp_path}"
    info = {"dataset": name, "classes": ["a", "b"], "image_size": 32}
    _, dataset = open_images(EvaluateOptions(), info)
    before = images_header(EvaluateOptions(image_size=64), dataset)
    assert before["image_size"] == 64
    (tmp_path / "test/a/000.jpg").rename(tmp_path / "test/b/other.jpg")
    assert images_header(EvaluateOptions(image_size=64), open_images(EvaluateOptions(), info)[1]) != before
    for split in ("train", "val", "test"):
        (tmp_path / split / "a").rename(tmp_path / split / "z")
    with pytest.raises(ValueError, match=r"\(classes are gone: a; classes are new: z\).*name its folders"):
        open_images(EvaluateOptions(), info)


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--ckpt=~/run", "--dataset=folder:~/x", "--results=~/r.jsonl"]
    options = commands.parse(EvaluateOptions, words).resolve()
    assert (options.ckpt, options.results) == (f"{tmp_path}/run", tmp_path / "r.jsonl")
    assert options.dataset == f"folder:{tmp_path}/x"


HEADER = {"ckpt": "ghn2-digits", "weights": "0"}
ROW = {"arch": "0", "parameters": 1, "top1": 1.0, "top5": 2.0, "predict_seconds": 0.1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notes without an end", "is no file of results"),
        ("notes\n", "line 1"),
        ("[1]\n", "line 1"),
        (json.dumps(HEADER), "is no file of results"),
        (json.dumps(HEADER | {"weights": "1"}) + "\n", "other weights"),
        (json.dumps(HEADER) + "\n" + '{"arch": "0"}\n', "line 2"),
        (json.dumps(HEADER) + "\n" + "[]\n", "line 2"),
    ],
)
def test_results_of_something_else_are_left_as_they_are(text: str, message: str, tmp_path: pathlib.Path):
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{message}.*give another --results, or move it away"):
        results.open_results(path, HEADER)
    assert path.read_text() == text


def test_a_line_cut_short_is_dropped_and_no_other(tmp_path: pathlib.Path):
    path = tmp_path / "results.jsonl"
    assert results.open_results(path, HEADER) == {}
    results.append(path, ROW)
    whole = path.read_text()
    path.write_text(whole + '{"arch": "1", "pa')
    assert results.open_results(path, HEADER) == {"0": ROW}
    assert path.read_text() == whole


def test_default_names_differ_by_weights():
    names = {report._default_path(EvaluateOptions(), weights, "digits") for weights in ("1", "2")}
    names.add(report._default_path(EvaluateOptions(num_images=64), "1", "digits"))
    assert len(names) == 3


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(NotFinite, match="the logits of tiny are not finite on 2 of 2 batches"):
        accuracy(
            lambda x: jnp.full((len(x), 10), jnp.nan), load("digits"), "test", num_images=128, name="tiny"
        )


def test_accuracy_on_part_of_the_images():
    digits = load("digits")
    assert isinstance(digits, ImageDataset)
    seen = []

    def logits(x):
        seen.append(len(x))
        return jax.nn.one_hot(jnp.full(len(x), 3), 10)

    part = accuracy(logits, digits, "test", num_images=100)
    assert seen == [64, 64]
    assert part.num_images == 100
    np.testing.assert_allclose(part.top1, 100 * np.mean(np.asarray(digits.test.labels[:100]) == 3), rtol=1e-6)
    with pytest.raises(ValueError, match=r"`num_images` \(=361\) are more than the 360"):
        count_images(EvaluateOptions(num_images=361), digits)
    test = ImageSplit(digits.test.images[:63], digits.test.labels[:63])
    few = dataclasses.replace(digits, test=test)
    with pytest.raises(ValueError, match=r"`dataset` \(=mine\) has 63 images to test on.*give a --dataset"):
        count_images(EvaluateOptions(dataset="mine"), few)


def test_networks_without_finite_parameters_are_an_error_when_the_others_are_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    ghn, first = pretrained.load("ghn2-digits"), []

    def predict_flat(config, params, network, templates):
        flat = accuracy_module.predict_flat(config, params, network, templates)
        return flat * jnp.nan if network.num_parameters == first[0] else flat

    monkeypatch.setattr(report, "predict_flat", predict_flat)
    monkeypatch.setattr(pretrained, "load", lambda _: ghn)
    path = tmp_path / "r.jsonl"
    options = EvaluateOptions(num_archs=2, results=path)
    monkeypatch.setattr(sampling, "sample", small_run.sample)  # of little to compile
    first.append(lower(small_run.sample("test", 0, image_size=16), 10, 16).num_parameters)
    with pytest.raises(
        NotFinite, match=r"1 of 2 architectures \(0\) .* predicted parameters of .* 0 of test"
    ):
        report.evaluate(options)
    assert "0  not finite: no accuracy" in (out := capsys.readouterr().out)
    assert "(mean ± standard error of 1)" in out
    assert [json.loads(line).get("arch") for line in path.read_text().splitlines()] == [None, "1"]


def test_bundled_weights_are_as_released(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    """After changing one: `sha256sum *.safetensors > SHA256SUMS`, in ghn_jax/pretrained."""
    for name in pretrained.bundled():
        pretrained.load(name)
    here = pretrained._HERE
    (tmp_path / "SHA256SUMS").write_text((here / "SHA256SUMS").read_text())
    data = bytearray((here / "ghn2-digits.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "ghn2-digits.safetensors").write_bytes(data)
    monkeypatch.setattr(pretrained, "_HERE", tmp_path)
    with pytest.raises(ValueError, match=r"`ckpt` .*is damaged .*install ghn_jax again"):
        pretrained.load("ghn2-digits")


def test_a_bundled_name_is_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    (tmp_path / "ghn2-digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert pretrained.load("ghn2-digits").info["dataset"] == "digits"
    with pytest.raises(ValueError, match="holds no checkpoints"):
        pretrained.load("./ghn2-digits")


def test_files_follow_the_umask_and_are_whole_or_absent(tmp_path: pathlib.Path):
    outputs.write(tmp_path / "a", b"1")
    (tmp_path / "plain").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(OSError, match="cannot be written"):
        outputs.write(tmp_path / "no" / "a", b"1")
    assert np.array_equal(sorted(p.name for p in tmp_path.iterdir()), ["a", "plain"])


def test_what_is_no_file_is_left_as_it_is(tmp_path: pathlib.Path):
    """A file that is written beside and renamed would end a pipe, or /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"`results` .* is no file that can be written"):
        outputs.check("results", pipe)
    with pytest.raises(OSError, match="it is no file"):
        outputs.write(pipe, b"1")
    with pytest.raises(OSError, match="it is no file"):
        pretrained.save(pipe, pretrained.load("ghn2-digits"))
    assert pipe.is_fifo()
    (tmp_path / "link").symlink_to("file")
    outputs.write(tmp_path / "link", b"1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"1"


def test_all_stages_of_training_are_told():
    info = {"dataset": "cifar10", "steps": 500, "before": {"dataset": "cifar10", "steps": 1500}}
    assert results.training(info) == "(trained for 1,500 + 500 steps on cifar10)"
    assert results.training({}) == "(training unknown)"


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_part_of_it(tmp_path: pathlib.Path):
    path = tmp_path / "results.jsonl"
    results.open_results(path, HEADER)
    results.append(path, ROW)
    whole, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (len(whole) + 10, limits[1])
    )  # the system takes ten bytes, as if it
    try:  # were full then: it raises nothing for these
        with pytest.raises(OSError, match=r"results.jsonl cannot be written \(.*\): make room"):
            results.append(path, ROW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole
    results.append(path, ROW | {"arch": "1"})
    assert results.open_results(path, HEADER) == {"0": ROW, "1": ROW | {"arch": "1"}}

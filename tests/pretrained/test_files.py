"""Files of GHNs in every format in circulation, and what is no such file."""

import builtins
import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from benchmarks.golden import fill, golden_params
from ghn_jax import pretrained
from ghn_jax.models.config import GHNConfig, ghn3
from ghn_jax.pretrained import __main__ as command
from ghn_jax.pretrained import public_names
from ghn_jax.pretrained.files import open_ghn
from ghn_jax.pretrained.torch_writer import write_torch_file

SMALL = ghn3(hidden=16, layers=2, heads=8)
FILES = {
    "ghn3_small.joblib.pt": "joblib",
    "ghn3_small_legacy.pt": "torch.save, old",
    "ghn3_small_own_run.pt": "torch.save",
}
"""Written by PyTorch 2.13 and joblib 1.6, with the weights of `fill`."""

TINY = GHNConfig(hidden=8, channels=8, max_kernel=3)


@pytest.fixture(scope="module")
def tiny() -> pretrained.TrainedGHN:
    return pretrained.TrainedGHN(TINY, golden_params(TINY), {"steps": 3, "dataset": "digits"})


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_public_code_load_bit_for_bit(golden, tmp_path, name):
    path = tmp_path / "any-name"  # what a file is, its content says
    path.write_bytes((golden / name).read_bytes())
    config, params, info = pretrained.load(path)
    expected = public_names.state_dict_shapes(config)
    assert config == GHNConfig(**{**vars(SMALL), "max_kernel": 16, "num_classes": 10})
    assert info["format"] == FILES[name]
    assert (info["classes"], info["size"], info["file"]) == (10, 354_184, "any-name")
    state = public_names.to_state_dict(config, params)
    assert set(state) == set(expected)
    for key, tensor in state.items():
        np.testing.assert_array_equal(tensor, fill(key, expected[key]))


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        GHNConfig(hidden=8, channels=8, max_kernel=3, virtual_edges=False, layer_norm=False, normalize=False),
        GHNConfig("mlp", hidden=8, channels=8, max_kernel=3, num_classes=7),
        SMALL,
    ],
)
def test_written_for_pytorch_and_read_again(tmp_path, config):
    path = tmp_path / "ghn.pt"
    pretrained.save(path, pretrained.TrainedGHN(config, golden_params(config), {}))
    loaded = pretrained.load(path)
    assert loaded.config == config
    for key, tensor in public_names.to_state_dict(config, loaded.params).items():
        np.testing.assert_array_equal(tensor, fill(key, tensor.shape))


def test_written_pickles_make_what_pytorch_makes(tmp_path, tiny):
    """Python's own unpickler, with stand-ins for PyTorch's functions, agrees with what is meant."""
    path = tmp_path / "ghn.pt"
    pretrained.save(path, tiny)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            return dict if name == "OrderedDict" else lambda *args: (name, *args)

        def persistent_load(self, pid):
            return pid[0], pid[2:]

    with zipfile.ZipFile(path) as archive:
        made = Unpickler(io.BytesIO(archive.read("ghn/data.pkl"))).load()
        shape = (15, 8)
        name, storage, offset, size, stride, _, hooks = made["state_dict"]["embed.weight"]
        assert (name, offset, size, stride, hooks) == ("_rebuild_tensor_v2", 0, shape, (8, 1), {})
        stored = np.frombuffer(archive.read(f"ghn/data/{storage[1][0]}"), np.float32).reshape(shape)
        np.testing.assert_array_equal(stored, fill("embed.weight", shape))
    assert made["config"]["max_shape"] == (8, 8, 3, 3)
    assert made["config"]["ve"] is True


def test_convert_and_show(tmp_path, tiny, capsys, monkeypatch):
    source, half, back = (str(tmp_path / name) for name in ("a.safetensors", "half.safetensors", "back.pt"))
    pretrained.save(pathlib.Path(source), tiny)
    for arguments in (
        ["convert", source, half, "--dtype=float16"],
        ["convert", half, back],
        ["show", back],
        ["list"],
    ):
        monkeypatch.setattr("sys.argv", ["pretrained", *arguments])
        command.main()
    assert "epoch" not in capsys.readouterr().err
    assert os.path.getsize(half) < 0.6 * os.path.getsize(source)
    loaded = pretrained.load(half)
    assert loaded.info == tiny.info
    np.testing.assert_allclose(loaded.params["ln"]["scale"], tiny.params["ln"]["scale"], rtol=1e-3)
    assert pretrained.load(back).config == TINY
    assert pretrained.load(back).info["dataset"] == tiny.info["dataset"]
    monkeypatch.setattr("sys.argv", ["pretrained", "convert", source, "out.txt"])
    with pytest.raises(SystemExit, match="2"):
        command.main()


# -- what is refused --------------------------------------------------------------------------------------------------


class Trace:
    """An object whose pickle runs a function when it is read."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def as_zip(path: pathlib.Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)


def as_old(path: pathlib.Path, pickled: bytes) -> None:
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts) + pickled + pickle.dumps([], 2))


@pytest.mark.parametrize("write", [as_zip, as_old, pathlib.Path.write_bytes])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", ["system", "eval", "torch.nn.modules.linear.Linear"])
def test_nothing_of_a_file_runs(tmp_path, write, protocol, name):
    trace, path = tmp_path / "trace", tmp_path / "ghn.pt"
    if name == "system":
        content, refused = Trace(os.system, f"touch {trace}"), f"{os.system.__module__}.system"
    elif name == "eval":
        content, refused = (
            Trace(builtins.eval, f"open({str(trace)!r}, 'w').close()"),
            "(builtins|__builtin__).eval",
        )
    else:
        content, refused = None, name
    pickled = pickle.dumps({"state_dict": content}, protocol)
    if content is None:
        pickled = b"\x80\x02ctorch.nn.modules.linear\nLinear\n)R."
    write(path, pickled)
    with pytest.raises(ValueError, match=rf"asks for {refused}, which no tensor needs"):
        pretrained.load(path)
    assert not trace.exists()
    if content is not None:  # the file is as bad as it looks
        pickle.loads(pickled)
        assert trace.exists()


@pytest.mark.parametrize("name", FILES)
def test_cut_and_garbled_files_are_one_line(golden, tmp_path, name):
    whole, path = (golden / name).read_bytes(), tmp_path / name
    for share in (0.0, 1e-5, 0.001, 0.01, 0.5, 0.99, 0.99999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"^`ckpt` \(=.*get it again$"):
            pretrained.load(path)
    rng = np.random.default_rng(0)
    begins = whole.index(b"ln.weight") - 200
    for _ in range(40):
        garbled = bytearray(whole)
        garbled[begins + rng.integers(3000)] = rng.integers(256)
        path.write_bytes(garbled)
        try:
            open_ghn(path)
        except ValueError as error:
            assert str(error).startswith("`ckpt` (="), error


def test_a_flipped_bit_of_a_weight_is_noticed(golden, tmp_path):
    content, path = bytearray((golden / "ghn3_small_own_run.pt").read_bytes()), tmp_path / "ghn.pt"
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        pretrained.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ln.bias": None}, r"lacks 'ln\.bias'"),
        ({"extra": np.zeros(3, np.float32)}, r"has 'extra', which a GHN"),
        ({"ln.weight": np.zeros(9, np.float32)}, r"'ln\.weight'.*must have shape \(8,\), got \(9,\)"),
        ({"embed.weight": None}, r"no GHN: it has no tensor 'embed\.weight'"),
        ({"decoder.conv.2.weight": np.zeros((63, 64), np.float32)}, "no squares"),
    ],
)
def test_tensors_that_do_not_make_a_ghn(tmp_path, tiny, change, message):
    state = public_names.to_state_dict(TINY, tiny.params) | change
    path = tmp_path / "ghn.pt"
    write_torch_file(path, {k: v for k, v in state.items() if v is not None}, {"layernorm": True})
    with pytest.raises(ValueError, match=message):
        pretrained.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", pickle.dumps([1, 2, 3]), pickle.dumps({"state_dict": {"a": 1}})]
)
def test_files_of_no_ghn(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^`ckpt` \(=.*"):
        pretrained.load(path)


def test_reading_takes_little_more_than_the_weights(tmp_path):
    """No tensor is in memory twice: blocks of a tensor go straight into their place."""
    import tracemalloc

    config = GHNConfig(hidden=32, channels=96, max_kernel=3)
    shapes = public_names.state_dict_shapes(config)
    path = tmp_path / "ghn.pt"
    write_torch_file(path, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, {})
    weights = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    public_names._BLOCK, before = weights // 100, public_names._BLOCK
    tracemalloc.start()
    try:
        pretrained.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        public_names._BLOCK = before
    assert peak < 1.3 * weights


def test_written_files_follow_the_umask(tmp_path, tiny):
    (tmp_path / "plain").touch()
    for name in ("ghn.safetensors", "ghn.pt"):
        pretrained.save(tmp_path / name, tiny)
        assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode

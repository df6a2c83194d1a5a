"""Published GHNs by name: from a directory, and from a stand-in of the Hugging Face hub's cache."""

import hashlib
import pathlib
import shutil

import pytest

import ghn_jax
from ghn_jax import pretrained
from ghn_jax.pretrained import published
from ghn_jax.targets import NAMES

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def weights(golden: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A directory with one file, which GHN_WEIGHTS names."""
    monkeypatch.setenv(published.DIRECTORY, str(tmp_path))
    shutil.copy(golden / "ghn3_small.joblib.pt", tmp_path / "ghn3tm8.pt")
    return tmp_path


@pytest.fixture
def blob(golden: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The one file of a cache laid out as the hub's, from which nothing leads to the network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.delenv(published.DIRECTORY, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    content = (golden / "ghn3_small.joblib.pt").read_bytes()
    repository = tmp_path / "models--SamsungSAILMontreal--ghn3"
    blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
    link = repository / "snapshots" / COMMIT / "ghn3tm8.pt"
    for path in (blob, link, repository / "refs" / "main"):
        path.parent.mkdir(parents=True)
    blob.write_bytes(content)
    link.symlink_to(blob)
    (repository / "refs" / "main").write_text(COMMIT)
    return blob


def test_from_a_directory(weights):
    ghn = ghn_jax.load("ghn3tm8")
    assert ghn.config.hypernet == "graphormer"
    assert ghn.info["name"] == "ghn3tm8"


@pytest.mark.parametrize("name", ["ghn1-cifar10", "ghn2-imagenet"])
def test_says_which_file_to_put_where(weights, monkeypatch, name):
    monkeypatch.setitem(published.GHNS, name, published.GHNS[name]._replace(hub=None))
    file = published.GHNS[name].files[0]
    with pytest.raises(
        ValueError, match=rf"`ckpt` \(='{name}'\).*: put {file}, from .*, into '{weights}' \(GHN_WEIGHTS\)$"
    ):
        ghn_jax.load(name)


def test_from_the_cache_of_the_hub(blob):
    for name in ("ghn3tm8", f"ghn3tm8@{COMMIT}"):
        info = ghn_jax.load(name).info
        assert info["revision"] == COMMIT
        assert info["sha256"] == blob.name
        assert info["repository"] == "SamsungSAILMontreal/ghn3"


def test_damaged_cache(blob):
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    with pytest.raises(ValueError, match=f"is damaged in the hub's cache: remove '{blob}' to get it again"):
        ghn_jax.load("ghn3tm8")


def test_offline_without_a_copy(blob):
    with pytest.raises(
        ValueError, match=r"put ghn3xlm16\.pt, from .*, into a directory and set GHN_WEIGHTS to it$"
    ):
        ghn_jax.load("ghn3xlm16")


def test_without_the_library_of_the_hub(monkeypatch, tmp_path):
    monkeypatch.delenv(published.DIRECTORY, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'ghn-jax\[hub\]'.*put ghn3tm8\.pt"):
        ghn_jax.load("ghn3tm8")


def test_lists():
    assert {"ghn2-digits", "ghn3xlm16", "ghn2-imagenet"} <= set(ghn_jax.list_ghns())
    assert set(ghn_jax.list_ghns()) == {*pretrained.bundled(), *published.GHNS}
    assert not {*pretrained.bundled()} & {*published.GHNS}
    assert ghn_jax.list_targets() == list(NAMES)
    assert set(ghn_jax.list_targets("resnet*")) == {name for name in NAMES if name.startswith("resnet")}
    with pytest.raises(ValueError, match="did you mean 'ghn3xlm16'"):
        ghn_jax.load("ghn3xl-m16")

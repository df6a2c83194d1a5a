"""Packing ImageNet's archives."""

import io
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds
from image_sets import examples, jpeg, labels

from datasets import imagenet
from ghn_jax.images.sources import open_dataset


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def archives(tmp_path, monkeypatch) -> Path:
    """Archives in the official form, with three training synsets of 12 images and five validation images."""
    monkeypatch.setattr(imagenet, "SIZES", {"train": 36, "validation": 5})
    monkeypatch.setattr(imagenet, "SHARDS", {"train": 4, "validation": 2})
    directory = tmp_path / "archives"
    directory.mkdir()
    with tarfile.open(directory / "ILSVRC2012_img_train.tar", "w") as outer:
        for number, synset in enumerate(["n01440764", "n01443537", "n15075141"]):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w") as inner:
                for index in range(12):
                    add_file(inner, f"{synset}_{index}.JPEG", jpeg(12 * number + index))
            add_file(outer, f"{synset}.tar", file.getvalue())
    with tarfile.open(directory / "ILSVRC2012_img_val.tar", "w") as tar:
        for index in reversed(range(5)):
            add_file(tar, f"ILSVRC2012_val_{index + 1:08}.JPEG", jpeg(100 + index))
    return directory


def test_packed_imagenet_is_read_back(archives, tmp_path):
    seen = []
    imagenet.prepare_imagenet(tmp_path / "tfds", archives, lambda *counts: seen.append(counts))
    dataset = open_dataset("imagenet", tmp_path / "tfds")
    assert dataset.num_classes == 1000
    assert Counter(labels(dataset.train) + labels(dataset.val)) == {0: 12, 1: 12, 999: 12}
    assert {example[:2] for example in examples(dataset.train)} < {
        (jpeg(12 * i + j), label) for i, label in enumerate([0, 1, 999]) for j in range(12)
    }
    info: Any = tfds.builder_from_directory(tmp_path / "tfds/imagenet2012/5.1.0").info
    synsets = info.features["label"].names
    official = Path(tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")).read_text().split()
    assert {synsets[label]: data for data, label, _ in examples(dataset.test)} == {
        official[i]: jpeg(100 + i) for i in range(5)
    }
    assert seen[35:37] == [(36, 36), (1, 5)]
    assert "tensorflow" not in sys.modules


def test_wrong_archives_are_refused(archives, tmp_path):
    train = archives / "ILSVRC2012_img_train.tar"
    content = train.read_bytes()
    train.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar is damaged after \d+ images"):
        imagenet.prepare_imagenet(tmp_path / "tfds", archives)
    train.write_bytes(content[:10240] + b"\0" * 10240)
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar (has|is damaged)"):
        imagenet.prepare_imagenet(tmp_path / "tfds", archives)
    train.unlink()
    with pytest.raises(ValueError, match=r"lacks ILSVRC2012_img_train\.tar: get it from image-net\.org"):
        imagenet.prepare_imagenet(tmp_path / "tfds", archives)
    assert not list((tmp_path / "tfds/imagenet2012").iterdir())
    (tmp_path / "tfds/imagenet2012/5.1.0").mkdir()
    with pytest.raises(ValueError, match=r"already has .*5\.1\.0: remove it first"):
        imagenet.prepare_imagenet(tmp_path / "tfds", archives)

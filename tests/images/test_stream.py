"""Batches that survive restarts, workers, processes and damaged images."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections import Counter, namedtuple
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from image_sets import DAMAGED, TRUNCATED, encoded, jpeg, numbered, picture, write_folder, write_tfds
from PIL import Image

from ghn_jax.images import decode, sources, stream
from ghn_jax.images.sources import open_dataset


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """30 training images, each its own class; some of them not plain JPEG, three of them damaged."""
    replaced = {
        "i2": encoded(picture(2, 40, 48).convert("CMYK")),
        "i3": encoded(picture(3, 40, 48), "PNG"),
        "i5": TRUNCATED,
        "i6": DAMAGED["garbage"],
        "i20": b"",
    }
    data_dir = tmp_path_factory.mktemp("stream")
    images = {"train": numbered(30, **replaced), "validation": numbered(11, i4=b""), "test": numbered(5)}
    write_tfds(data_dir, images, num_classes=30, name="thirty/1.0.0")
    return data_dir


@pytest.fixture(scope="module")
def dataset(data_dir) -> sources.StreamedDataset:
    return open_dataset("tfds:thirty", data_dir, image_size=16)


def take(batches: Iterator[stream.Batch], num: int) -> list[stream.Batch]:
    return list(islice(batches, num))


def assert_same(actual: list[stream.Batch], expected: list[stream.Batch]) -> None:
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
        assert a.damaged == b.damaged


def test_training_batches_are_a_function_of_the_seed(dataset):
    batches = take(stream.TrainStream(dataset, 6, seed=0), 10)
    for batch in batches:
        assert batch.images.shape == (6, 16, 16, 3)
        assert batch.images.dtype == np.uint8
        assert batch.images.flags.c_contiguous
        assert batch.labels.dtype == np.int32
    assert_same(take(stream.TrainStream(dataset, 6, seed=0), 10), batches)
    others = take(stream.TrainStream(dataset, 6, seed=1), 10)
    assert [b.labels.tolist() for b in others] != [b.labels.tolist() for b in batches]
    assert [b.labels.tolist() for b in batches[5:]] != [b.labels.tolist() for b in batches[:5]]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_an_epoch_sees_every_image_once(dataset, num_processes):
    """Whatever the number of processes, a step's batch is the same, and damaged images have stand-ins."""
    streams = [stream.TrainStream(dataset, 6, 0, index, num_processes) for index in range(num_processes)]
    expected = {5: 7, 6: 7, 20: 21}  # the next whole image
    for epoch in range(2):
        steps = [[next(s) for s in streams] for _ in range(5)]
        seen = Counter(int(label) for step in steps for batch in step for label in batch.labels)
        assert seen == Counter(expected.get(label, label) for label in range(30))
        assert sum(s.damaged for s in streams) == 3 * (epoch + 1)
    whole = take(stream.TrainStream(dataset, 6, 0), 10)[5:]
    for step, batch in zip(steps, whole, strict=True):
        interleaved = np.stack([b.images for b in step], axis=1).reshape(batch.images.shape)
        np.testing.assert_array_equal(interleaved, batch.images)


def test_damaged_images_are_told(dataset):
    batches = take(stream.TrainStream(dataset, 10, seed=0), 3)
    told = {message.split(":")[0] for batch in batches for message in batch.damaged}
    assert told == {"image 5", "image 6", "image 20"}
    assert sum((~batch.new).sum() for batch in batches) == 3


def test_resumed_stream_goes_on_with_the_very_next_image(dataset):
    first = stream.TrainStream(dataset, 6, seed=3)
    take(first, 4)
    state = json.loads(json.dumps(first.state()))
    expected = take(first, 7)
    resumed = stream.TrainStream(dataset, 6, seed=3)
    resumed.restore(state)
    assert_same(take(resumed, 7), expected)
    assert resumed.damaged == first.damaged > 0
    resumed.restore(state)
    assert_same(take(resumed, 2), expected[:2])
    halves = [stream.TrainStream(dataset, 6, 3, index, 2) for index in range(2)]
    for half in halves:
        half.restore(state)
    np.testing.assert_array_equal(np.stack([next(h).labels for h in halves], 1).ravel(), expected[0].labels)


def test_state_of_another_stream_is_refused(dataset):
    state = stream.TrainStream(dataset, 6, seed=3).state()
    with pytest.raises(
        ValueError, match=r"another stream of images: batch_size was 6, is 5; seed was 3, is 4"
    ):
        stream.TrainStream(dataset, 5, seed=4).restore(state)


def test_workers_make_the_same_batches(dataset):
    """Workers start, and start again after a restore; one that is killed is an error, not a hang."""
    expected = take(stream.TrainStream(dataset, 6, seed=0), 6)
    worked = stream.TrainStream(dataset, 6, seed=0, num_workers=2)
    assert_same(take(worked, 3), expected[:3])
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(ValueError, match=r"a worker process died .*: lower `num_workers` \(=2\)"):
        take(worked, 20)
    worked.close()
    assert not multiprocessing.active_children()


WORKING = """
import multiprocessing, os, sys, time
from ghn_jax.images import sources, stream
if __name__ == "__main__":
    dataset = sources.open_dataset("tfds:thirty", sys.argv[1], image_size=16)
    images = stream.TrainStream(dataset, 6, seed=0, num_workers=2)
    next(images)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def shared_memory() -> set[Path]:
    return set(Path("/dev/shm").glob("psm_*"))


def test_workers_and_shared_memory_end_with_a_killed_parent(data_dir, tmp_path):
    program, before = tmp_path / "working.py", shared_memory()
    program.write_text(WORKING)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, program, data_dir]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout
        workers = [Path("/proc", pid) for pid in parent.stdout.readline().split()]
        left = {*workers, *(shared_memory() - before)}
        parent.kill()
    assert len(workers) == 2 < len(left)
    for _ in range(600):
        if not any(path.exists() for path in left):
            return
        time.sleep(0.1)
    raise AssertionError(left)


def test_evaluation_sees_every_image_once(dataset):
    batches = list(stream.evaluation_batches(dataset, dataset.val, batch_size=4, seed=0))
    assert [batch.images.shape for batch in batches] == [(4, 16, 16, 3)] * 3
    counted = [int(label) for b in batches for label in b.labels[b.new]]
    assert sorted(counted) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert next(message for b in batches for message in b.damaged).startswith("image 4: ")
    image = Image.fromarray(decode.decode(jpeg(3))).resize((21, 18), Image.Resampling.BILINEAR)
    place = next((b, i) for b in batches for i in range(4) if b.labels[i] == 3)
    np.testing.assert_array_equal(place[0].images[place[1]], np.asarray(image)[1:17, 2:18])
    assert_same(list(stream.evaluation_batches(dataset, dataset.val, batch_size=4, seed=0)), batches)
    part = list(stream.evaluation_batches(dataset, dataset.val, batch_size=4, num_images=6, seed=0))
    assert_same(part[:1], batches[:1])
    some = [int(label) for b in part for label in b.labels[b.new]]
    assert some == counted[: len(some)] and len(some) in (5, 6)  # one is damaged
    other = stream.evaluation_batches(dataset, dataset.val, batch_size=4, seed=1)
    assert any((a.labels != b.labels).any() for a, b in zip(other, batches, strict=True))


def test_bytes_damaged_on_disk_are_told(tmp_path):
    directory = write_tfds(tmp_path, {"train": numbered(20), "validation": numbered(5)}, 20)
    shard = directory / "imagenet2012-train.array_record-00000-of-00001"
    content = bytearray(shard.read_bytes())
    place = 5000
    content[place : place + 8] = b"\0" * 8
    shard.write_bytes(content)
    dataset = open_dataset("imagenet", tmp_path, image_size=16)
    train = stream.TrainStream(dataset, 18, seed=0)
    (message,) = next(train).damaged
    assert "hash mismatch" in message
    assert train.damaged == 1


def test_nothing_readable_is_an_error(tmp_path):
    write_folder(tmp_path, {"train": {"ant": 40, "bee": 40}, "val": {"ant": 1}})
    dataset = open_dataset(f"folder:{tmp_path}", image_size=16)
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(ValueError, match=r"64 images in a row cannot be read \(image .*No such file"):
        next(stream.TrainStream(dataset, 4, seed=0))


def test_too_little_shared_memory_is_an_error(dataset, monkeypatch):
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda path: Usage(free=64 * 2**20))
    monkeypatch.setattr(stream, "_SHARED_MEMORY", Path("/"))
    stream._check_workers(0, 256 * 224 * 224 * 3)  # 36.75 MiB a batch
    with pytest.raises(
        ValueError, match=r"`num_workers` \(=2\) needs 294 MiB of shared memory, / has 64: lower it to 0"
    ):
        stream._check_workers(2, 256 * 224 * 224 * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"`batch_size` \(=0\) must be in 1\.\.30"),
        ({"batch_size": 31}, r"`batch_size` \(=31\) must be in 1\.\.30"),
        ({"process_count": 4}, r"`batch_size` \(=6\) does not divide over 4 processes"),
        ({"seed": -1}, r"`seed` \(=-1\) must not be negative"),
        ({"num_workers": -1}, r"`num_workers` \(=-1\) must not be negative"),
    ],
)
def test_numbers_out_of_range_are_errors(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        stream.TrainStream(dataset, **({"batch_size": 6, "seed": 0} | arguments))


def test_too_few_images_to_evaluate_are_an_error(dataset):
    with pytest.raises(ValueError, match=r"`batch_size` \(=64\) must be in 1\.\.11"):
        next(stream.evaluation_batches(dataset, dataset.val))

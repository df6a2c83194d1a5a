"""Image sets: reading, preparing, and batches drawn on the device."""

import io
import os
import sys
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from datasets import images
from ghn_jax.images import loading, resident

KEY = jax.random.key(0)


def write_archive(path: Path, seed: int = 0, **replaced: bytes | None) -> dict[str, resident.ImageSplit]:
    """Writes a tiny archive of noise in the official format, and returns what a reader must find in it.

    `replaced` gives other content for a file by the stem of its name, None to leave it out.
    """
    rng = np.random.default_rng(seed)
    splits = {}
    with tarfile.open(path, "w:gz") as tar:
        for split, names in images.FILES.items():
            records = rng.integers(0, 256, (len(names), 4, images.RECORD_BYTES), np.uint8)
            records[..., 0] %= 10
            for name, file in zip(names, records, strict=True):
                data = replaced.get(Path(name).stem, file.tobytes())
                if data is not None:
                    member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
            pixels = records[..., 1:].reshape(-1, 3, 32, 32)
            splits[split] = resident.ImageSplit(
                np.moveaxis(pixels, 1, -1), records[..., 0].reshape(-1).astype(np.int32)
            )
    return splits


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["images", "prepare", "cifar10", *map(str, arguments)])
    try:
        images.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_prepared_cifar10_reads_back_bit_exact(tmp_path, monkeypatch, capfd):
    expected = write_archive(tmp_path / "archive.tar.gz")
    status = run_command(
        monkeypatch, "--data_dir", tmp_path / "tfds", "--archive", tmp_path / "archive.tar.gz"
    )
    assert status == 0
    dataset = resident.load("cifar10", str(tmp_path / "tfds"))
    assert capfd.readouterr() == (f"wrote {tmp_path}/tfds/cifar10/3.0.2\n", "")

    train = [
        np.concatenate(pair) for pair in zip(as_tuple(dataset.train), as_tuple(dataset.val), strict=True)
    ]
    np.testing.assert_array_equal(train[0], expected["train"].images)
    np.testing.assert_array_equal(train[1], expected["train"].labels)
    np.testing.assert_array_equal(dataset.test.images, expected["test"].images)
    np.testing.assert_array_equal(dataset.test.labels, expected["test"].labels)
    assert len(dataset.val.labels) == 2
    assert dataset.classes == images.CLASSES and dataset.num_classes == 10
    assert dataset.identity.num_images == {"train": 18, "val": 2, "test": 4}
    assert dataset.test.images.dtype == np.uint8
    assert dataset.test.labels.dtype == np.int32
    files = sorted(path.name for path in (tmp_path / "tfds/cifar10/3.0.2").iterdir())
    assert files == [
        "cifar10-test.array_record-00000-of-00001",
        "cifar10-train.array_record-00000-of-00001",
        "dataset_info.json",
        "features.json",
        "label.labels.txt",
    ]
    assert [path.name for path in (tmp_path / "tfds/cifar10").iterdir()] == ["3.0.2"]


def test_a_copy_of_cifar10_that_is_not_whole_is_refused(tmp_path):
    write_archive(tmp_path / "archive.tar.gz")
    images.prepare_cifar10(tmp_path / "tfds", tmp_path / "archive.tar.gz")
    shard = tmp_path / "tfds/cifar10/3.0.2/cifar10-test.array_record-00000-of-00001"
    whole = shard.read_bytes()
    middle = len(whole) // 2
    shard.write_bytes(whole[:middle] + bytes(100) + whole[middle + 100 :])
    with pytest.raises(ValueError, match=r"`data_dir` .*damaged cifar10 .*: copy or prepare it again"):
        resident.load("cifar10", str(tmp_path / "tfds"))
    shard.unlink()
    with pytest.raises(
        ValueError, match=r"lacks 1 of 1 files of its split 'test', as cifar10-test\.array_record"
    ):
        resident.load("cifar10", str(tmp_path / "tfds"))


def as_tuple(split: resident.ImageSplit) -> tuple[np.ndarray, np.ndarray]:
    return split.images, split.labels


def test_prepare_refuses_to_overwrite(tmp_path):
    directory = tmp_path / "cifar10" / "3.0.2"
    directory.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"`data_dir` .* already has .*: remove it"):
        images.prepare_cifar10(tmp_path, tmp_path / "unread.tar.gz")
    assert not list(directory.iterdir())


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"data_batch_3": None}, "it lacks data_batch_3.bin"),
        ({"test_batch": b"\0" * 3000}, "test_batch.bin has 3000 bytes, not a multiple of 3073"),
        ({"test_batch": b""}, "test_batch.bin has 0 bytes"),
        ({"data_batch_1": b"\x0a" + b"\0" * 3072}, r"data_batch_1.bin has label 10, not in 0\.\.9"),
    ],
)
def test_wrong_archive_is_refused(tmp_path, replaced, message):
    write_archive(tmp_path / "archive.tar.gz", **replaced)
    with pytest.raises(ValueError, match=f"`archive` .* must be a whole cifar-10-binary.tar.gz.*{message}"):
        images.prepare_cifar10(tmp_path / "tfds", tmp_path / "archive.tar.gz")
    assert not (tmp_path / "tfds").exists()


@pytest.mark.parametrize("kept", [0, 5, 0.1, 0.5, 0.99])
def test_truncated_archive_is_one_line_and_status_2(tmp_path, monkeypatch, capfd, kept):
    archive = tmp_path / "archive.tar.gz"
    write_archive(archive)
    data = archive.read_bytes()
    archive.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    assert run_command(monkeypatch, "--data_dir", tmp_path / "tfds", "--archive", archive) == 2
    output, error = capfd.readouterr()
    assert output == ""
    assert error.startswith("error: `archive` (=")
    assert error.count("\n") == 1
    assert not (tmp_path / "tfds").exists()


def test_missing_archive_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"`archive` .*No such file"):
        images.read_archive(tmp_path / "none.tar.gz")


def test_interrupted_writing_leaves_no_dataset(tmp_path, monkeypatch):
    def fail(image):
        raise OSError("disk full")

    write_archive(tmp_path / "archive.tar.gz")
    monkeypatch.setattr(images, "_png", fail)
    with pytest.raises(OSError, match="disk full"):
        images.prepare_cifar10(tmp_path / "tfds", tmp_path / "archive.tar.gz")
    assert not list((tmp_path / "tfds/cifar10").iterdir())


def test_download_reports_progress_and_checks_the_sum(tmp_path, monkeypatch):
    write_archive(tmp_path / "archive.tar.gz")
    size = (tmp_path / "archive.tar.gz").stat().st_size
    monkeypatch.setattr(images, "URL", (tmp_path / "archive.tar.gz").as_uri())
    seen = []
    with pytest.raises(ValueError, match=r"came with SHA-256 [0-9a-f]{64}, not c4a38c50"):
        images.prepare_cifar10(tmp_path / "tfds", progress=lambda *counts: seen.append(counts))
    assert seen == [(size, size)]


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"`name` .*='cifar100'.*did you mean 'cifar10'"):
        resident.load("cifar100")


def test_missing_dataset_says_how_to_prepare_it(tmp_path):
    command = "python -m datasets.images prepare cifar10 --data_dir DIR"
    with pytest.raises(ValueError, match=f"`data_dir` .=None.*{command}"):
        resident.load("cifar10")
    with pytest.raises(ValueError, match=f"`data_dir` .='{tmp_path}'.*{command}"):
        resident.load("cifar10", str(tmp_path))
    with pytest.raises(ValueError, match=f"`data_dir` .='{tmp_path}/none'.*{command}"):
        resident.load("cifar10", f"{tmp_path}/none")


def test_digits():
    digits = resident.load("digits")
    assert [len(split.labels) for split in (digits.train, digits.val, digits.test)] == [1294, 143, 360]
    assert digits.train.images.shape == (1294, 32, 32, 3)
    assert digits.train.images.max() == 255
    assert not digits.flip
    assert digits.classes == tuple("0123456789") and digits.identity.fingerprint == "24e38c0f9e29fa2f"
    # The shuffle is fixed for good: results on this set are compared between runs.
    assert digits.train.labels[:8].tolist() == [6, 6, 6, 2, 5, 6, 6, 2]
    assert digits.test.labels[:8].tolist() == [0, 8, 8, 9, 8, 3, 7, 5]
    normalised = resident.normalize(jnp.asarray(digits.train.images), digits.mean, digits.std)
    np.testing.assert_allclose([normalised.mean(), normalised.std()], [0, 1], atol=1e-4)


def test_enlarge_interpolates_between_pixel_centres():
    column = np.array([0.0, 8.0])
    enlarged = resident._enlarge(np.broadcast_to(column, (1, 2, 2)), factor=4)
    np.testing.assert_allclose(
        enlarged, np.broadcast_to([0, 0, 1, 3, 5, 7, 8, 8], (1, 8, 8)), rtol=0, atol=1e-12
    )


@pytest.mark.skipif("GHN_DATA_DIR" not in os.environ, reason="GHN_DATA_DIR names no TFDS directory")
def test_real_cifar10():
    dataset = resident.load("cifar10", os.environ["GHN_DATA_DIR"])
    assert [len(split.labels) for split in (dataset.train, dataset.val, dataset.test)] == [45000, 5000, 10000]
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    pixels = np.concatenate([dataset.train.images, dataset.val.images]) / np.float32(255)
    np.testing.assert_allclose(pixels.mean((0, 1, 2), np.float64), dataset.mean, atol=3e-3)
    np.testing.assert_allclose(pixels.std((0, 1, 2), np.float64), dataset.std, atol=3e-3)


@pytest.mark.parametrize(("num_images", "batch_size"), [(1, 1), (2, 1), (37, 5), (64, 64), (1294, 64)])
def test_an_epoch_sees_every_image_once(num_images, batch_size):
    draw = jax.jit(resident.batch_indices, static_argnums=(2, 3))
    steps = num_images // batch_size
    epochs = np.array(
        [[draw(KEY, e * steps + s, num_images, batch_size) for s in range(steps)] for e in (0, 1, 7)]
    )
    for seen in epochs.reshape(3, -1):
        assert len(set(seen.tolist())) == len(seen) == steps * batch_size
        assert seen.min() >= 0
        assert seen.max() < num_images
    if num_images > 2:
        assert (epochs[0] != epochs[1]).any()


def test_orders_are_uniform():
    """Each of the 24 orders of 4 images comes up equally often, over epochs."""
    draw = jax.jit(jax.vmap(lambda epoch: resident.batch_indices(KEY, epoch, 4, 4)))
    orders = np.asarray(draw(jnp.arange(24_000)))
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-squared with 23 degrees of freedom: p = 0.001


@pytest.mark.parametrize("batch_size", [0, 9])
def test_impossible_batch_size_is_an_error(batch_size):
    with pytest.raises(ValueError, match=rf"`batch_size` \(={batch_size}\) must be in 1\.\.8"):
        resident.batch_indices(KEY, 0, 8, batch_size)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 2])
def test_augment_gives_every_crop_and_nothing_else(pad, flip):
    image = np.arange(1, 1 + 5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    shifts = [(y, x) for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
    crops = [padded[y : y + 5, x : x + 4] for y, x in shifts]
    expected = {crop.tobytes() for crop in crops} | {crop[:, ::-1].tobytes() for crop in crops if flip}
    batch = jnp.broadcast_to(image, (1000, 5, 4, 3))
    augmented = jax.jit(resident.augment, static_argnames=("pad", "flip"))(KEY, batch, pad=pad, flip=flip)
    assert augmented.shape == batch.shape
    assert augmented.dtype == jnp.uint8
    assert {crop.tobytes() for crop in np.asarray(augmented)} == expected


def test_normalize():
    pixels = jnp.array([[[[0, 51, 255]]]], jnp.uint8)
    normalised = resident.normalize(pixels, (0.5, 0.2, 0.0), (0.25, 1.0, 0.5))
    assert normalised.dtype == jnp.float32
    np.testing.assert_allclose(normalised, [[[[-2, 0, 2]]]], atol=1e-6)


def test_images_are_resized_on_the_device():
    digits = loading.load("digits", image_size=64)
    assert isinstance(digits, resident.ImageDataset)
    assert digits.image_size == 64 and digits.train.images.shape[1:3] == (32, 32)
    pixels = digits.train.images[:2]
    resized = resident.normalize(jnp.asarray(pixels), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), digits.image_size)
    expected = [
        np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)) for image in pixels
    ]
    np.testing.assert_allclose(resized, np.stack(expected) / 255, atol=1 / 255)


def test_batches_depend_on_key_and_step_alone():
    """A run resumed at step 5 goes on as if it had not stopped, and images keep their labels."""
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 10, 20), jnp.int32)
    pixels = jnp.broadcast_to(labels.astype(jnp.uint8)[:, None, None, None], (20, 8, 8, 3))

    @jax.jit
    def draw(key, step):
        return resident.train_batch(
            key,
            step,
            pixels,
            labels,
            batch_size=6,
            mean=(0.0, 0.0, 0.0),
            std=(1 / 255, 1 / 255, 1 / 255),
            pad=1,
            flip=True,
        )

    stream = [draw(KEY, step) for step in range(8)]
    resumed = [draw(KEY, jnp.int32(step)) for step in range(5, 8)]
    jax.tree.map(np.testing.assert_array_equal, stream[5:], resumed)
    for batch, batch_labels in stream:
        assert batch.shape == (6, 8, 8, 3)
        assert batch.dtype == jnp.float32
        assert batch_labels.dtype == jnp.int32
        np.testing.assert_allclose(batch[:, 4, 4, 0], batch_labels, atol=1e-5)
    assert (stream[0][1] != draw(jax.random.key(1), 0)[1]).any()
    assert (stream[0][0] != stream[3][0]).any()  # step 3 starts the next epoch

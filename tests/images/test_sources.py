"""Opening streamed image sets, and what is wrong with them."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from image_sets import encoded, examples, jpeg, labels, numbered, picture, write_folder, write_tfds

from ghn_jax.images import folders
from ghn_jax.images.examples import DamagedImage
from ghn_jax.images.sources import open_dataset
from ghn_jax.images.stream import TrainStream


def test_imagenet_holds_out_a_tenth_of_its_training_images(tmp_path):
    splits = {"train": numbered(50), "validation": numbered(7), "test": [(jpeg(0), -1)] * 3}
    write_tfds(tmp_path, splits, num_classes=50)
    dataset = open_dataset("imagenet", tmp_path)
    assert (dataset.num_classes, dataset.image_size, dataset.crops) == (50, 224, "resized")
    assert [len(source) for source in (dataset.train, dataset.val, dataset.test)] == [45, 5, 7]
    assert sorted(labels(dataset.train) + labels(dataset.val)) == list(range(50))
    assert labels(dataset.val) == labels(open_dataset("imagenet", tmp_path).val)
    assert labels(dataset.test) == list(range(7))  # the test split's labels are secret
    assert dataset.train[0].data == jpeg(dataset.train[0].label)
    assert "tensorflow" not in sys.modules


def test_tfds_gives_classes_and_size(tmp_path):
    splits = {"train": numbered(20), "test": numbered(5)}
    write_tfds(tmp_path, splits, num_classes=20, name="small/1.0.0", shape=(32, 32, 3))
    write_tfds(tmp_path, splits, num_classes=30, name="small/10.0.0", shape=(32, 32, 3))
    write_tfds(tmp_path, splits | {"validation": numbered(4)}, 20, name="other/grey/2.0.0", shape=(40, 48, 1))
    dataset = open_dataset("tfds:small", str(tmp_path))
    assert (dataset.num_classes, dataset.image_size, dataset.crops) == (30, 32, "shifted")
    assert open_dataset("tfds:small:1.0.0", tmp_path).num_classes == 20
    assert open_dataset("tfds:small", tmp_path, image_size=64).crops == "resized"
    other = open_dataset("tfds:other/grey", tmp_path)
    assert [len(source) for source in (other.train, other.val, other.test)] == [20, 4, 5]
    assert (other.image_size, other.crops) == (32, "resized")


@pytest.mark.parametrize(
    ("sizes", "crops"),
    [
        ([(32, 32)], "shifted"),
        ([(40, 60)], "resized"),
        ([(40, 60), (60, 40)], "resized"),
        ([(32, 32), (40, 40)], "resized"),
    ],
)
def test_thumbnails_are_square_and_of_one_size(tmp_path, sizes, crops):
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(20):
                height, width = sizes[number % len(sizes)]
                image = picture(number, height, width).convert("L" if number % 5 == 0 else "RGB")
                image.save(tmp_path / split / name / f"{number}.png")
    assert open_dataset(f"folder:{tmp_path}").crops == crops


def test_folder_holds_out_the_last_files_of_each_class(tmp_path):
    write_folder(tmp_path, {"train": {"ant": 30, "bee": 12, "cat": 5}, "val": {"ant": 2, "cat": 1}})
    (tmp_path / "train/ant/readme.txt").write_text("no image")
    dataset = open_dataset(f"folder:{tmp_path}")
    assert (dataset.num_classes, dataset.image_size, dataset.crops) == (3, 32, "resized")
    assert labels(dataset.val) == [0, 0, 0, 1]
    assert Counter(labels(dataset.train)) == {0: 27, 1: 11, 2: 5}
    assert labels(dataset.test) == [0, 0, 2]
    assert dataset.test[2].data == jpeg(1)
    (tmp_path / "val/cat/000.jpg").unlink()
    with pytest.raises(DamagedImage, match=r"val/cat/000\.jpg: No such file"):
        dataset.test[2]


def test_held_out_images_of_imagenet_in_a_folder_are_the_published_ones():
    source = folders.FolderSource(Path(), [str(i) for i in range(1000)], [["a"] * 732, *[["a"] * 1300] * 999])
    held_out = source.held_out()
    assert len(held_out) == 50_000
    np.testing.assert_array_equal(held_out[:50], np.arange(682, 732))


@pytest.mark.parametrize(
    ("name", "data_dir", "message"),
    [
        ("imagenet", None, r"`data_dir` \(=None\) must name a TFDS directory"),
        ("imagenet", "none", r"`data_dir` .*none'\) does not exist: give a TFDS directory with imagenet2012"),
        ("imagenet", "elsewhere", r"lacks imagenet2012 \(it holds cifar10, mixed, pets\)"),
        ("imagenet", "old", r"lacks version 5\.1\.0 \(it holds 5\.0\.0\)"),
        ("imagenet", "good/imagenet2012", r"lacks imagenet2012 .* give the directory above, '.*good'"),
        ("imagenet", "good/imagenet2012/5.1.0", r"give the directory above, '.*good'"),
        ("tfds:mixed", "elsewhere", r"mixed/1\.0\.0 holds another data set, cifar10/3\.0\.2"),
        ("imagenet", "tfrecord", r"is in the format tfrecord: prepare it with file_format='array_record'"),
        ("imagenet", "incomplete", r"lacks 1 of 1 files of its split 'validation'"),
        ("imagenet", "no_info", r"lacks dataset_info\.json"),
        ("imagenet", "bad_info", r"holds no readable TFDS data set"),
        ("imagenet", "empty", r"has no images in its split 'validation'"),
        ("imagenet", "one_class", r"has 1 class: classification needs two or more"),
        ("imagenet", "no_test", r"has the labelled splits train: needed are train, and"),
        ("imagenet", "few", r"too few training images \(9\) to hold out a tenth"),
        ("folder:{}/none", None, r"`dataset` .*none'\) does not exist: put a folder of images"),
        (
            "folder:{}",
            None,
            r"lacks .*train \(it holds bad_info, elsewhere, .*put a folder of images for each",
        ),
        ("folder:{}/folder_nested", None, r"lacks .*train \(it holds pictures, scans\)"),
        ("folder:{}/folder_one", None, r"has 1 class"),
        (
            "folder:{}/folder_empty_class",
            None,
            r"train'\) has classes without images \(1, as 'bee'\): remove",
        ),
        ("folder:{}/folder_empty", None, r"has no images in its split 'train'"),
        ("folder:{}/folder_both", None, r"has both 'val' and 'validation'"),
        ("folder:{}/folder_other", None, r"val'\) has classes that train lacks \(1, as 'dog'\): move"),
        ("imagnet", None, r"`dataset` \(='imagnet'\) is unknown: valid are imagenet, tfds:NAME, folder:PATH"),
        ("tfds:", None, r"is unknown"),
        (
            "tfds:pets",
            "elsewhere",
            r"several configurations: give one, as tfds:pets/large or tfds:pets/small",
        ),
        ("tfds:pets/large:2.0.0", "elsewhere", r"lacks version 2\.0\.0 \(it holds 1\.0\.0\)"),
    ],
)
def test_bad_data_is_one_clear_error(wrong_data, name, data_dir, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(name.format(wrong_data), data_dir and wrong_data / data_dir)


@pytest.fixture(scope="module")
def wrong_data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("wrong")
    images = {"train": numbered(20), "validation": numbered(3)}
    write_tfds(root / "good", images, 20)
    write_tfds(root / "elsewhere", images, 20, name="cifar10/3.0.2")
    write_tfds(root / "elsewhere", images, 20, name="mixed/1.0.0", stored_name="cifar10/3.0.2")
    for configuration in ("small", "large"):
        (root / "elsewhere/pets" / configuration / "1.0.0").mkdir(parents=True)
    write_tfds(root / "old", images, 20, name="imagenet2012/5.0.0")
    write_tfds(root / "tfrecord", images, 20, file_format="tfrecord")
    directory = write_tfds(root / "incomplete", images, 20)
    (directory / "imagenet2012-validation.array_record-00000-of-00001").unlink()
    (write_tfds(root / "no_info", images, 20) / "dataset_info.json").unlink()
    (write_tfds(root / "bad_info", images, 20) / "dataset_info.json").write_text("{")
    write_tfds(root / "empty", images | {"validation": []}, 20)
    write_tfds(root / "one_class", {split: [(jpeg(0), 0)] * 20 for split in images}, 1)
    write_tfds(root / "no_test", {"train": numbered(20)}, 20)
    write_tfds(root / "few", images | {"train": numbered(9)}, 9)
    write_folder(root / "folder_nested", {"scans": {"ant": 9, "bee": 9}, "pictures": {"ant": 9}})
    write_folder(root / "folder_one", {"train": {"ant": 10}, "val": {"ant": 1}})
    write_folder(root / "folder_empty_class", {"train": {"ant": 10, "bee": 0}, "val": {"ant": 1}})
    write_folder(root / "folder_empty", {"train": {"ant": 0, "bee": 0}, "val": {"ant": 1}})
    write_folder(root / "folder_both", {split: {"ant": 1} for split in ("train", "val", "validation")})
    write_folder(root / "folder_other", {"train": {"ant": 10, "bee": 10}, "val": {"dog": 1}})
    return root


@pytest.mark.parametrize("missing", ["PIL", "simplejpeg"])
def test_missing_decoder_is_named(monkeypatch, tmp_path, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf"`{missing}` is not installed: pip install 'ghn-jax\[train\]'"):
        open_dataset("imagenet", tmp_path)


def test_folder_is_read_as_torchvision_does(tmp_path):
    """Classes, labels and order of nested files, with what only programs see left out."""
    write_folder(tmp_path, {"Train": {"bee": 11, "ant": 12}, "test": {"ant": 1}, "extra": {"ant": 1}})
    (tmp_path / "Train/ant/more/far").mkdir(parents=True)
    for name in ("more/far/a.JFIF", "more/b.gif", "more/c.avif", "z.jp2", "y.webp"):
        (tmp_path / "Train/ant" / name).write_bytes(jpeg(3))
    (tmp_path / "Train/ant/more/up").symlink_to(tmp_path / "Train/ant")
    for name in (".ipynb_checkpoints", "__MACOSX", "ant/.thumbs"):
        (tmp_path / "Train" / name).mkdir()
        (tmp_path / "Train" / name / "x.jpg").write_bytes(jpeg(4))
    (tmp_path / "Train/ant/._000.jpg").write_bytes(b"of a Mac")
    for name in ("bee/photo.heic", "stray.jpg"):
        (tmp_path / "Train" / name).write_bytes(b"")
    dataset = open_dataset(f"folder:{tmp_path}")
    assert dataset.num_classes == 2
    source = folders.open_folder(tmp_path).splits["train"]
    places = [str(Path(example.place).relative_to(tmp_path / "Train")) for example in examples(source)]
    nested = ["ant/more/b.gif", "ant/more/c.avif", "ant/more/far/a.JFIF"]
    tops = [f"ant/{i:03}.jpg" for i in range(12)]
    assert places == [*tops, "ant/y.webp", "ant/z.jp2", *nested, *[f"bee/{i:03}.jpg" for i in range(11)]]
    assert labels(source) == [0] * 17 + [1] * 11
    files, directories = dataset.notes
    assert (
        files.startswith("passed over, since they are no images (2)")
        and "photo.heic" in files
        and "stray.jpg" in files
    )
    assert directories == "directories beside train are not used: extra"


@pytest.mark.parametrize(
    ("sizes", "image_size", "crops"),
    [
        ([(28, 28)], 32, "shifted"),
        ([(64, 64)], 64, "shifted"),
        ([(96, 96)], 96, "resized"),
        ([(500, 375), (30, 40), (333, 500)], 224, "resized"),
        ([(110, 100), (90, 96), (300, 400)], 96, "resized"),
    ],
)
def test_networks_see_images_of_about_their_size(tmp_path, sizes, image_size, crops):
    """The median of the shorter sides, as the nearest multiple of 32; never 224 for thumbnails."""
    images = [(encoded(picture(i, *sizes[i % len(sizes)])), i % 12) for i in range(24)]
    for number, (data, label) in enumerate(images):
        for split in ("train", "val"):
            path = tmp_path / "folder" / split / f"class{label}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    write_tfds(tmp_path, {"train": images, "test": images}, 12, "set/1.0.0")
    for name in (f"folder:{tmp_path / 'folder'}", "tfds:set"):
        dataset = open_dataset(name, tmp_path)
        assert (dataset.image_size, dataset.crops) == (image_size, crops)
        batch = next(TrainStream(dataset, 2, seed=0))
        assert batch.images.shape == (2, image_size, image_size, 3)
        assert open_dataset(name, tmp_path, image_size=128).image_size == 128


def test_characters_are_seen_whole_at_any_size(tmp_path):
    images = [(encoded(picture(index, 28, 28).convert("L"), "PNG"), index % 12) for index in range(24)]
    write_tfds(tmp_path, {"train": images, "test": images}, 12, "set/1.0.0", shape=(28, 28, 1))
    assert open_dataset("tfds:set", tmp_path, image_size=64).crops == "shifted"


def test_a_set_of_damaged_images_is_an_error(tmp_path):
    write_folder(tmp_path, {"train": {"ant": 20, "bee": 20}, "val": {"ant": 1}})
    for path in (tmp_path / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of .* images can be read"):
        open_dataset(f"folder:{tmp_path}")


def test_what_changed_in_a_folder_is_told(tmp_path):
    write_folder(tmp_path, {"train": {"ant": 30, "bee": 12}, "val": {"ant": 2, "bee": 2}})
    name = f"folder:{tmp_path}"
    before = json.loads(json.dumps(open_dataset(name).identity.to_dict()))
    assert before["classes"] == ["ant", "bee"] and before["num_images"] == {"train": 38, "val": 4, "test": 4}
    assert open_dataset(name).identity.changes(before) == []
    (tmp_path / "train/ant/004.jpg").rename(tmp_path / "train/ant/040.jpg")
    assert open_dataset(name).identity.changes(before) == ["images were replaced or renamed"]
    (tmp_path / "val/ant/000.jpg").unlink()
    assert open_dataset(name).identity.changes(before) == ["test had 4 images, has 3"]
    for split in ("train", "val"):
        (tmp_path / split / "ant").rename(tmp_path / split / "wasp")
    changes = open_dataset(name).identity.changes(before)
    assert changes[:2] == ["classes are gone: ant", "classes are new: wasp"]
    write_folder(tmp_path, {"train": {"cat": 10}})
    assert open_dataset(name).identity.changes(before)[0] == "it had 2 classes, has 3"


def test_what_changed_in_a_tfds_directory_is_told(tmp_path):
    splits = {"train": numbered(20), "test": numbered(5)}
    identities = []
    for number, images in enumerate((splits, splits, splits | {"train": numbered(20, i3=jpeg(50))})):
        write_tfds(tmp_path / str(number), images, 20, "set/1.0.0")
        identities.append(open_dataset("tfds:set", tmp_path / str(number)).identity)
    assert identities[0] == identities[1]
    assert identities[2].changes(identities[0].to_dict()) == ["images were replaced or renamed"]


def test_every_tenth_image_is_held_out_of_small_classes(tmp_path):
    write_folder(tmp_path, {"train": {"ant": 9, "bee": 9, "cat": 9}, "val": {"ant": 1}})
    dataset = open_dataset(f"folder:{tmp_path}")
    assert (len(dataset.train), labels(dataset.val)) == (25, [1, 2])


@pytest.mark.parametrize("layout", ["train", "classes", "tfds"])
def test_of_training_images_alone_a_part_is_held_out_to_test_with(tmp_path, layout):
    """The same ones each time, which are in no other part."""
    if layout == "tfds":
        write_tfds(tmp_path, {"train": numbered(35), "test": [(jpeg(0), -1)]}, 35, "alone/1.0.0")
    else:
        write_folder(tmp_path, {"train" if layout == "train" else "": {"ant": 30, "bee": 12, "cat": 5}})
    name = "tfds:alone" if layout == "tfds" else f"folder:{tmp_path}"
    dataset, again = (open_dataset(name, tmp_path if layout == "tfds" else None) for _ in range(2))
    parts = [
        {example.place for example in examples(part)} for part in (dataset.train, dataset.val, dataset.test)
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == (35 if layout == "tfds" else 47)
    assert parts[2] == {example.place for example in examples(again.test)}
    if layout != "tfds":
        assert labels(dataset.test) == labels(dataset.val) == [0, 0, 0, 1]
        assert [example.place[-7:-4] for example in examples(dataset.val)] == ["027", "028", "029", "011"]
    *others, note = dataset.notes
    num = len(dataset.test)
    assert (
        f"{num} of them are held out to test with, and {num} to validate with, the same ones in every run"
        in note
    )
    classes = f"{tmp_path} has no folder train: the classes are the 3 folders in it, ant, bee, cat"
    assert others == ([classes] if layout == "classes" else [])


def test_small_classes_alone_have_every_tenth_image_held_out_twice(tmp_path):
    write_folder(tmp_path, {"train": {"ant": 9, "bee": 9, "cat": 9}})
    dataset = open_dataset(f"folder:{tmp_path}")
    assert (len(dataset.train), labels(dataset.val), labels(dataset.test)) == (22, [1, 2], [0, 1, 2])


def test_renamed_directory_is_the_data_set_it_was(tmp_path):
    write_tfds(tmp_path, {"train": numbered(20), "test": numbered(5)}, 20, "mine/1.0.0", "flowers/1.0.0")
    dataset = open_dataset("tfds:mine", tmp_path)
    assert len(dataset.test) == 5 and dataset.test[1].place == "record 1 of test"
    assert dataset.notes == (f"{tmp_path}/mine/1.0.0 is the data set flowers/1.0.0, renamed",)


@pytest.mark.parametrize(
    ("shape", "num_classes", "flip"),
    [((28, 28, 1), 47, False), ((32, 32, 3), 10, False), ((32, 32, 3), 12, True), ((28, 28, 3), 12, True)],
    ids=["emnist", "digits", "twelve", "colours"],
)
def test_characters_are_not_mirrored(tmp_path, shape, num_classes, flip):
    images = [(jpeg(index), index % num_classes) for index in range(30)]
    write_tfds(tmp_path, {"train": images, "test": images}, num_classes, "set/1.0.0", shape=shape)
    dataset = open_dataset("tfds:set", tmp_path)
    assert dataset.flip == flip
    assert any("not mirrored" in note for note in dataset.notes) != flip


def test_a_pipe_is_no_image(tmp_path: Path):
    for name in ("train/cat", "train/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.png").touch()
    os.mkfifo(tmp_path / "train" / "dog" / "b.png")
    assert len(folders.open_folder(tmp_path).splits["train"]) == 2

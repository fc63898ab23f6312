"""What each source promises."""

import dataclasses
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from nexttok.config import ConfigError
from nexttok.data import loader, photos, shapes
from nexttok.data.loader import DataConfig, load_source, make_loader

CFG = DataConfig("digits", "", 16, 1, 10, 0, "none", 0, 2)
RGB = dataclasses.replace(CFG, channels=3)


def test_digits_split_is_fixed_stratified_and_disjoint():
    train, test = (load_source(CFG, split, 0) for split in ("train", "test"))
    assert (len(train), len(test)) == (1400, 397)
    counts = np.bincount([train[i]["label"] for i in range(1400)])
    assert counts.min() >= 130
    assert counts.max() <= 150
    seen = {train[i]["image"].tobytes() for i in range(1400)}
    assert not any(test[i]["image"].tobytes() in seen for i in range(397))
    again = load_source(CFG, "train", 9)
    np.testing.assert_array_equal(again[5]["image"], train[5]["image"])


def test_digits_in_rgb_are_grey():
    image = load_source(RGB, "test", 0)[7]["image"]
    assert image.shape == (16, 16, 3)
    np.testing.assert_array_equal(image, np.repeat(image[..., :1], 3, -1))


PHOTOS = dataclasses.replace(RGB, source="photos", num_classes=1)


def test_photos_test_crops_come_from_other_photographs(monkeypatch):
    opened = []
    real = photos.photograph
    monkeypatch.setattr(photos, "photograph", lambda name: opened.append(name) or real(name))
    load_source(PHOTOS, "train", 0)
    seen = set(opened)
    opened.clear()
    load_source(PHOTOS, "test", 0)
    assert len(opened) >= 2
    assert not seen & set(opened)


def test_photos_are_a_fixed_sequence_of_crops():
    cfg = PHOTOS
    train, test = (load_source(cfg, split, 0) for split in ("train", "test"))
    image = train[3]["image"]
    assert image.shape == (16, 16, 3)
    assert image.std() > 0.05
    np.testing.assert_array_equal(load_source(cfg, "train", 1)[3]["image"], image)
    assert not np.array_equal(train[3]["image"], train[3 + len(photos.TRAIN)]["image"])
    assert not np.array_equal(test[0]["image"], train[0]["image"])


def test_photos_cropped_again_are_not_blurred():
    loader = make_loader(dataclasses.replace(PHOTOS, augment="crop_flip"), "train", 64, 0)
    batch = next(loader)
    loader.close()
    assert batch["image"].shape == (64, 16, 16, 3)
    detail = lambda x: np.abs(np.diff(x, axis=2)).mean()
    plain = load_source(PHOTOS, "train", 0)
    assert detail(batch["image"]) > 0.88 * detail(
        np.stack([plain[i]["image"] for i in batch["index"].tolist()])
    )


def scene(index, split="train", seed=0, **changes):
    cfg = dataclasses.replace(RGB, source="shapes", num_classes=len(shapes.KINDS), **changes)
    return load_source(cfg, split, seed)[index]


def test_shapes_are_a_pure_function_of_seed_split_and_index():
    a = scene(5)
    np.testing.assert_array_equal(a["image"], scene(5)["image"])
    for other in (scene(6), scene(5, "test"), scene(5, seed=1)):
        assert not np.array_equal(a["image"], other["image"])


@pytest.mark.parametrize("index", range(12))
def test_captions_attributes_and_maps_say_the_same(index):
    example = scene(index, resolution=48)
    attributes = example["attributes"]
    np.testing.assert_array_equal(shapes.parse_caption(str(example["caption"])), attributes)
    count = int((attributes[:, 0] >= 0).sum())
    assert set(np.unique(example["segmentation"])) == set(range(count + 1))
    assert example["label"] == attributes[0, 0]
    areas = [(example["segmentation"] == i + 1).sum() for i in range(count)]
    assert int(np.argmax(areas)) == 0 or shapes.KINDS[attributes[0, 0]] in ("ring", "cross", "star")
    for i in range(count):
        _kind, color, _, row, col = attributes[i]
        ys, xs = np.nonzero(example["segmentation"] == i + 1)
        assert abs(ys.mean() / 48 - (row + 0.5) / 3) < 0.12
        assert abs(xs.mean() / 48 - (col + 0.5) / 3) < 0.12
        inside = example["image"][ys, xs]
        tone = np.asarray(shapes.COLORS[shapes.COLOR_NAMES[color]]) * 2 - 1
        assert np.abs(np.median(inside, 0) - tone).max() < 0.1
    assert 0 < example["edges"].mean() < 0.5


def test_captions_of_more_shapes_are_read_whole():
    phrase = "a small red ring at the top left"
    parsed = shapes.parse_caption(", ".join([phrase] * 6))
    np.testing.assert_array_equal(parsed, np.tile([5, 0, 0, 0, 0], (6, 1)))
    assert (shapes.parse_caption("a photograph of a dog") == -1).all()


def test_shapes_are_batched_with_their_captions_and_maps():
    cfg = dataclasses.replace(CFG, source="shapes", num_classes=6, frames=3)
    loader = make_loader(cfg, "train", 4, 0)
    batch = next(loader)
    loader.close()
    assert batch["image"].shape == (4, 3, 16, 16, 1)
    assert batch["segmentation"].shape == batch["edges"].shape == (4, 3, 16, 16)
    for text, attributes in zip(batch["caption"], batch["attributes"], strict=True):
        np.testing.assert_array_equal(shapes.parse_caption(str(text)), attributes)


def test_shapes_move_smoothly_in_videos():
    clip = scene(2, frames=5)
    assert clip["image"].shape == (5, 16, 16, 3)
    assert clip["segmentation"].shape == (5, 16, 16)
    moved = np.abs(np.diff(clip["image"], axis=0)).mean((1, 2, 3))
    assert (moved > 0).all()
    assert moved.max() < 0.5
    x = [shapes.bounce(np.asarray([0.8]), np.asarray([0.05]), t)[0] for t in range(40)]
    assert min(x) >= 0.15
    assert max(x) <= 0.85
    assert np.abs(np.diff(x)).max() <= 0.05 + 1e-9


def pictures(root, count=40):
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def test_folder_splits_reports_and_counts_unreadable_files(tmp_path, caplog):
    pictures(tmp_path)
    (tmp_path / "cat" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "dog" / "notes.txt").write_text("ignored")
    cfg = dataclasses.replace(RGB, source=f"folder:{tmp_path}", num_classes=2)
    train, test = (load_source(cfg, split, 0) for split in ("train", "test"))
    problems = train.info.problems + test.info.problems
    assert len(problems) == 1
    assert "broken.png" in problems[0]
    assert "broken.png" in caplog.text
    assert len(train) + len(test) == 80
    assert 2 <= len(test) <= 20
    assert train.info.class_names == ("cat", "dog")
    batch = next(make_loader(dataclasses.replace(cfg, augment="crop_flip"), "train", 4, 0))
    assert batch["image"].shape == (4, 16, 16, 3)
    assert next(iter(make_loader(cfg, "test", 4, 0)))["image"].shape == (4, 16, 16, 3)


def test_folder_with_its_own_split(tmp_path):
    pictures(tmp_path / "train", 3)
    pictures(tmp_path / "test", 2)
    cfg = dataclasses.replace(RGB, source=f"folder:{tmp_path}", num_classes=2)
    assert len(load_source(cfg, "train", 0)) == 6
    assert len(load_source(cfg, "test", 0)) == 4
    with pytest.raises(ConfigError, match="one folder per class"):
        load_source(dataclasses.replace(cfg, source=f"folder:{tmp_path}/test/cat"), "train", 0)
    (tmp_path / "test" / "fox").mkdir()
    loader._opened.cache_clear()
    with pytest.raises(ConfigError, match=r"test classes among those of train, not \['fox'\]"):
        load_source(cfg, "train", 0)


def test_folder_with_a_train_folder_only_holds_out_a_tenth_in_mixed_order(tmp_path):
    pictures(tmp_path / "train")
    cfg = dataclasses.replace(RGB, source=f"folder:{tmp_path}", num_classes=2)
    train, test = (load_source(cfg, split, 0) for split in ("train", "test"))
    assert len(train) + len(test) == 80
    assert 2 <= len(test) <= 20
    assert train.info.class_names == ("cat", "dog")
    assert {int(train[i]["label"]) for i in range(16)} == {0, 1}
    assert train[0]["image"].shape == (16, 16, 3)


def test_folder_of_animated_pictures_is_a_folder_of_clips(tmp_path, caplog):
    for split in ("train", "test"):
        (tmp_path / split / "wave").mkdir(parents=True)
    for name, count in (("long", 9), ("short", 3)):
        frames = [Image.new("RGB", (24, 16), (20 * i, 0, 0)) for i in range(count)]
        path = tmp_path / "train" / "wave" / f"{name}.png"
        frames[0].save(path, save_all=True, append_images=frames[1:])
    cfg = dataclasses.replace(RGB, source=f"folder:{tmp_path}", num_classes=1, frames=5)
    clips = load_source(cfg, "train", 0)
    assert len(clips) == 1
    assert "3 frames, fewer than data.frames = 5" in clips.info.problems[0]
    clip = next(make_loader(cfg, "train", 2, 0))["image"]
    assert clip.shape == (2, 5, 16, 16, 3)
    red = (clip[0, :, 0, 0, 0] + 1) * 127.5
    np.testing.assert_allclose(red, [40, 60, 80, 100, 120], atol=1e-3)  # the middle five
    with pytest.raises(ConfigError, match=r"data\.augment = 'crop_flip': expected none"):
        load_source(dataclasses.replace(cfg, augment="crop_flip"), "train", 0)
    with pytest.raises(ConfigError, match=r"data\.frames = 5: .*shapes \| folder:<path>"):
        load_source(dataclasses.replace(cfg, source="photos"), "train", 0)


def test_folder_turns_photographs_upright_and_refuses_deep_ones(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    sideways = np.zeros((16, 16, 3), np.uint8)
    sideways[:, :8] = 255
    tag = Image.Exif()
    tag[0x0112] = 6  # the camera lay on its side: turn clockwise
    Image.fromarray(sideways).save(tmp_path / "train" / "a" / "1.png", exif=tag)
    deep = np.full((16, 16), 40_000, np.uint16)
    Image.fromarray(deep).save(tmp_path / "train" / "a" / "2.png")
    (tmp_path / "test").mkdir()
    cfg = dataclasses.replace(RGB, source=f"folder:{tmp_path}", num_classes=1)
    train = load_source(cfg, "train", 0)
    assert len(train) == 1
    assert "8 bits" in train.info.problems[0]
    assert train[0]["image"][:8].min() == 1.0
    assert train[0]["image"][8:].max() == -1.0


def prepare_tfds(root, names=("a", "b"), splits=("train", "test"), withheld=()):
    """Writes a tiny data set in the layout of `tfds build --file_format=array_record`."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(12, 12, 3)),
            "label": tfds.features.ClassLabel(names=list(names)) if names else np.int64,
        }
    )
    place = root / "toy" / "1.0.0"
    place.mkdir(parents=True)
    written = []
    for split in splits:
        count = {"train": 10, "test": 4, "validation": 3}[split]
        name = f"toy-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(place / name), "group_size:1")
        size = 0
        for i in range(count):
            png = io.BytesIO()
            Image.fromarray(np.full((12, 12, 3), 20 * i, np.uint8)).save(png, "PNG")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(png.getvalue())
            example.features.feature["label"].int64_list.value.append(
                -1 if split in withheld else i % 2
            )
            record = example.SerializeToString()
            size += len(record)
            writer.write(record)
        writer.close()
        written.append(
            {"name": split, "shardLengths": [str(count)], "numBytes": str(size),
             "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
        )  # fmt: skip
    features.save_config(place)
    info = {"name": "toy", "version": "1.0.0", "fileFormat": "array_record", "splits": written}
    (place / "dataset_info.json").write_text(json.dumps(info))


def test_tfds_reads_array_records(tmp_path):
    prepare_tfds(tmp_path)
    cfg = dataclasses.replace(RGB, source="tfds:toy", root=str(tmp_path), num_classes=2)
    train = load_source(cfg, "train", 0)
    assert (len(train), len(load_source(cfg, "test", 0))) == (10, 4)
    np.testing.assert_allclose(train[3]["image"], 60 / 127.5 - 1, atol=1e-5)
    assert train[3]["label"] == 1
    assert next(make_loader(cfg, "train", 5, 0))["image"].shape == (5, 16, 16, 3)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("splits", [("train", "validation"), ("train", "test", "validation")])
def test_tfds_measures_on_validation_where_test_has_no_labels(tmp_path, splits):
    prepare_tfds(tmp_path, splits=splits, withheld=("test",))
    cfg = dataclasses.replace(RGB, source="tfds:toy", root=str(tmp_path), num_classes=2)
    test = load_source(cfg, "test", 0)
    assert [int(test[i]["label"]) for i in range(len(test))] == [0, 1, 0]


def test_tfds_refuses_what_it_cannot_serve(tmp_path):
    prepare_tfds(tmp_path, splits=("train",))
    cfg = dataclasses.replace(RGB, source="tfds:toy", root=str(tmp_path), num_classes=2)
    with pytest.raises(ConfigError, match=r"splits \['train'\]"):
        load_source(cfg, "test", 0)
    prepare_tfds(tmp_path / "unnamed", names=())
    with pytest.raises(ConfigError, match="class names"):
        load_source(dataclasses.replace(cfg, root=str(tmp_path / "unnamed")), "train", 0)

"""Sets of images: what is read, and what is refused."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from nexttok.config import ConfigError
from nexttok.score import reference
from nexttok.score.images import cropped, open_images, within
from tests.score.inputs import blocky


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_folders_and_files_hold_the_same_images(tmp_path, save):
    images = blocky(0, 5, 20, 30)
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "folder" / "deep" / f"{i}.png")
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    np.save(tmp_path / "array.npy", images)
    save(tmp_path / "array.npz", images, np.arange(5))
    keys = set()
    for name in ("folder", "array.npy", "array.npz"):
        found = open_images(tmp_path / name)
        assert found.shape == (5, 20, 30, 3)
        for part in (slice(0, 2), slice(4, 5), slice(1, 4)):
            np.testing.assert_array_equal(found[part], images[part])
        keys.add(found.key)
    assert len(keys) == 3


def test_the_key_follows_the_contents(tmp_path):
    np.save(tmp_path / "a.npy", blocky(0, 2, 8, 8))
    before = open_images(tmp_path / "a.npy").key
    assert open_images(tmp_path / "a.npy").key == before
    np.save(tmp_path / "a.npy", blocky(1, 3, 8, 8))
    assert open_images(tmp_path / "a.npy").key != before


def test_crops_are_squares_of_the_centre(tmp_path):
    image = np.zeros((90, 200, 3), np.uint8)
    image[:, 55:145] = 100
    Image.fromarray(image).save(tmp_path / "wide.png")
    Image.fromarray(image[:, 60:140].transpose(1, 0, 2)).save(tmp_path / "tall.png")
    found = open_images(tmp_path, 20)
    assert found.shape == (2, 20, 20, 3)
    both = found[0:2].astype(int)
    assert (abs(both[0] - 100) <= 2).all()
    assert (abs(both[1][:, 1:-1] - 100) <= 12).all()
    # 90 is halved twice, by means, then shrunk to 20
    halved = Image.fromarray(image).reduce(2).reduce(2)
    expected = halved.resize((round(50 * 20 / 22), 20), Image.Resampling.BICUBIC)
    got = np.asarray(cropped(Image.fromarray(image), 20))
    assert abs(got.astype(int) - np.asarray(expected)[:, 12:32]).max() <= 2
    with pytest.raises(ConfigError, match=r"one size, or --crop=SIDE"):
        open_images(tmp_path)


def header(shape, descr="|u1"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "EOF"),
        (b"\x93NUMPY\x01\x00\xff\xff", "."),
        (header((9, 2000, 2000, 3)) + b"x", "bytes of images"),
        (header((2, 4, 4, 2)) + bytes(64), "1 or 3"),
        (header((2, 1 << 20, 1 << 20, 3)) + bytes(64), "sides up to 4096"),
        (header((2, 4, 4, 3), "<f4") + bytes(384), "expected uint8"),
        (header((2, 4, 4, 3), "|O") + bytes(384), "expected uint8"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_and_lying_files_are_refused(tmp_path, contents, message, suffix):
    path = tmp_path / f"bad.{suffix}"
    if suffix == "npy":
        path.write_bytes(contents)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("arr_0.npy", contents)
    with pytest.raises(ConfigError, match=message):
        open_images(path)


def test_what_holds_no_images_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a folder of images"):
        within(str(tmp_path / "nowhere"), "samples")
    with pytest.raises(ConfigError, match="a folder with files ending in"):
        open_images(tmp_path)
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(ConfigError, match=r"a\.png"):
        open_images(tmp_path)
    (tmp_path / "b.npz").write_bytes(b"PK none")
    for read in (open_images, reference.read):
        with pytest.raises(ConfigError, match=r"b\.npz"):
            read(tmp_path / "b.npz")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"images/samples\.npz, which nexttok\.main"):
        within(str(tmp_path), "samples")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, r"\[D\] and \[D, D\]"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "finite"),
        ({"labels": np.zeros(3)}, "arr_0, or mu and sigma"),
    ],
)
def test_references_that_are_none_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        reference.read(tmp_path / "ref.npz")

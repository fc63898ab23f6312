"""Pictures that mean harm: named and skipped, or one error; no code run, no memory beyond a bound.

FUZZ=5000 in the environment tries as many examples of each kind.
"""

import dataclasses
import io
import os
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from nexttok.config import ConfigError
from nexttok.data import files, folder
from nexttok.data.loader import load_source
from nexttok.editing import read_picture
from tests.data.test_sources import RGB
from tests.interop.test_hostile import FEW, mutated

PIXELS = np.random.default_rng(0).integers(0, 255, (3, 12, 12, 3), np.uint8)


def picture(kind, frames=1, **options):
    made = io.BytesIO()
    first, *rest = (Image.fromarray(p) for p in PIXELS[:frames])
    more = dict(save_all=True, append_images=rest) if rest else {}
    first.save(made, kind, **more, **options)
    return made.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(side, data):
    """A grey picture that claims side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
BAD = {
    "claim.png": png(60_000, zlib.compress(bytes(1000))),
    "larger.png": png(9_000, zlib.compress(bytes(9_000 * 9_001), 9)),  # Pillow's limit warns only
    "huge.png": png(2**31 - 1, b""),
    "script.png": POSTSCRIPT,
    "text.jpg": b"no picture",
    "empty.gif": b"",
    "cut.png": picture("PNG")[:80],
    "bomb.gif": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0;",
    "wide.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24,
                                     0, 0, 0, 0, 0, 0),
}  # fmt: skip


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_unreadable(tmp_path, name, monkeypatch):
    started = []  # Pillow hands PostScript to a program
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **_: started.append(args))
    path = tmp_path / name
    path.write_bytes(BAD[name])
    with pytest.raises(files.Unreadable):
        folder.pixels(path)
    with pytest.raises(ConfigError, match=r"config\.sample\.mask = .*expected a picture"):
        read_picture(str(path), 16, 1, "sample.mask")
    assert not started


CODE = """
import resource, sys
from nexttok.data import files, folder
import pathlib
room = 2**28
resource.setrlimit(resource.RLIMIT_AS, (room + int(open("/proc/self/statm").read().split()[0])
                                        * resource.getpagesize(),) * 2)
for path in map(pathlib.Path, sys.argv[1:]):
    try:
        folder.pixels(path)
    except files.Unreadable as error:
        assert "pixels" in str(error) or "exceeds limit" in str(error), error
    else:
        raise AssertionError(path)
"""


def test_bombs_are_refused_in_little_memory(tmp_path):
    """256 MB beyond what Python has loaded, where the largest would take 10 GB."""
    bombs = [name for name in BAD if name.split(".")[0] in ("claim", "larger", "huge", "bomb")]
    for name in bombs:
        (tmp_path / name).write_bytes(BAD[name])
    words = [sys.executable, "-W", "ignore", "-c", CODE, *(str(tmp_path / name) for name in bombs)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_picture_at_the_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_PIXELS", 12 * 12)
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    np.testing.assert_array_equal(folder.pixels(tmp_path / "a.png"), PIXELS[0])
    monkeypatch.setattr(files, "MOST_PIXELS", 12 * 12 - 1)
    with pytest.raises(files.Unreadable, match="12 x 12 pixels, more than 143"):
        folder.pixels(tmp_path / "a.png")


@pytest.mark.parametrize("frames", [0, 3])
def test_a_folder_names_what_is_no_picture_and_goes_on(tmp_path, caplog, frames):
    (tmp_path / "cat").mkdir()
    for i in range(20):
        (tmp_path / "cat" / f"{i}.gif").write_bytes(picture("GIF", 3))
    os.mkfifo(tmp_path / "cat" / "pipe.png")  # would be waited for
    (tmp_path / "cat" / "lost.png").symlink_to("nowhere")
    (tmp_path / "cat" / "folder.png").mkdir()
    (tmp_path / "cat" / "notes.txt").write_bytes(b"not looked at")
    (tmp_path / "cat" / "script.png").write_bytes(POSTSCRIPT)
    cfg = dataclasses.replace(RGB, source=f"folder:{tmp_path}", num_classes=1, frames=frames,
                              augment="none")  # fmt: skip
    splits = [load_source(cfg, split, 0) for split in ("train", "test")]
    assert sum(map(len, splits)) == 20
    problems = "".join(problem for split in splits for problem in split.info.problems)
    for name in ("pipe.png: no regular file", "lost.png: no regular file", "script.png: "):
        assert name in problems
    assert problems.count("regular file") == 2


GOOD = {
    "a.png": picture("PNG"),
    "a.jpg": picture("JPEG"),
    "a.bmp": picture("BMP"),
    "a.webp": picture("WEBP", 3),
    "a.gif": picture("GIF", 3),
    "a.tif": picture("TIFF", 3, compression="tiff_lzw"),
    "b.png": picture("PNG", 3),
}


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what is damaged
@pytest.mark.parametrize("name", GOOD)
def test_damaged_pictures_are_read_or_unreadable(tmp_path, name):
    path, cfg = tmp_path / name, dataclasses.replace(RGB, frames=2)

    @FEW
    @given(st.data())
    def check(data):
        path.write_bytes(mutated(data.draw, GOOD[name]))
        for read in (folder.pixels, lambda path: folder.read_clip(path, cfg)):
            try:
                found = read(path)
            except files.Unreadable:
                continue
            assert found.shape[-1] == 3

    path.write_bytes(GOOD[name])
    assert folder.pixels(path).shape == (12, 12, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes

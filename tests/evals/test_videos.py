"""Videos among pictures."""

import numpy as np
from PIL import Image, ImageSequence

from nexttok.evals.videos import frames, save_animation, strip


def test_frames_and_strips_hold_every_pixel_in_its_place():
    videos = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 1)).astype(np.float32)
    wide = strip(videos)
    assert wide.shape == (2, 4, 15, 1)
    for t in range(3):
        np.testing.assert_array_equal(wide[:, :, 5 * t : 5 * t + 5], videos[:, t])
        np.testing.assert_array_equal(frames(videos)[3 + t], videos[1, t])
    pictures = videos[:, 0]
    np.testing.assert_array_equal(strip(pictures), pictures)
    np.testing.assert_array_equal(frames(pictures), pictures)


def test_an_animation_shows_one_frame_after_the_other(tmp_path):
    videos = np.full((1, 2, 3, 4, 4, 1), -1.0, np.float32)
    for t in range(3):
        videos[0, 1, t, 0, t] = 1.0
    path = tmp_path / "deep" / "clip.gif"
    save_animation(path, videos, cell=4)
    with Image.open(path) as clip:
        shown = [np.asarray(f.convert("L")) for f in ImageSequence.Iterator(clip)]
    assert [s.shape for s in shown] == [(4, 8)] * 3
    bright = [np.argwhere(s > 128).tolist() for s in shown]
    assert bright == [[[0, 4 + t]] for t in range(3)]

"""Generations step by step, and pictures of plans."""

import json

import numpy as np
import pytest
from PIL import Image

from nexttok import plans
from nexttok.config_files import load_config
from nexttok.evals.film import COLORS, KNOWN, NEW, UNKNOWN, save_film, shown_steps, so_far, steps_of
from nexttok.evals.lattice import EMPTY, fitted, lattice, nearest
from nexttok.evals.plan_pictures import attention, maps, plan_figure
from nexttok.experiment import resolve
from nexttok.tokens import TokenSpec

GRID = TokenSpec((2, 2), 16, 4)


def test_steps_are_those_of_each_samples_order():
    order = np.array([[2, 0, 3, 1], [0, 1, 2, 3]], np.int32)
    np.testing.assert_array_equal(steps_of(order, (1, 3)), [[1, 1, 0, 1], [0, 1, 1, 1]])
    np.testing.assert_array_equal(steps_of(order[:, :0], ()), np.zeros((2, 0)))
    assert shown_steps(2, 5) == [2, 3, 4]
    assert len(shown_steps(0, 256)) == 24


def test_tokens_lie_where_they_are():
    np.testing.assert_array_equal(lattice(GRID, np.arange(4)), [[0, 1], [2, 3]])
    row = lattice(TokenSpec((5,), 16, 4), np.arange(5))
    np.testing.assert_array_equal(row, [[0, 1, 2], [3, 4, EMPTY]])
    clip = lattice(TokenSpec((2, 1, 2), 16, 4), np.arange(4))
    np.testing.assert_array_equal(clip, [[0, 1, 2, 3]])
    pyramid = TokenSpec((5,), 16, 4, nested=True, scales=(1, 2))
    np.testing.assert_array_equal(lattice(pyramid, np.array([2, 0, 0, 0, 0])), [[2]])
    np.testing.assert_array_equal(lattice(pyramid, np.array([1, 2, 2, 2, 2])), [[2, 2], [2, 2]])
    assert [m.shape for m in maps(pyramid, np.array([0, 1, 1, 1, 1]))] == [(1, 1), (2, 2)]


def test_a_grid_opens_cell_by_cell_and_prefixes_decode():
    images = {4: np.zeros((1, 4, 4, 1), np.float32)}
    known = np.array([[True, False, False, False]])
    shown = so_far(images, known, GRID)[0, ..., 0]
    assert (shown[:2, :2] == 0).all()
    assert shown.sum() == 12
    nested = TokenSpec((4,), 16, 4, nested=True)
    lengths = {n: np.full((1, 4, 4, 1), n / 10, np.float32) for n in (2, 4)}
    counts = [np.arange(4)[None] < n for n in (1, 3, 4)]
    values = [float(so_far(lengths, known, nested).max()) for known in counts]
    assert values == pytest.approx([1.0, 0.2, 0.4])
    free = TokenSpec((4,), 16, 4)
    assert so_far(images, counts[1], free).min() == 1
    assert so_far(images, counts[2], free).max() == 0


def test_cells_are_coloured_and_parted():
    drawn = fitted(np.array([[UNKNOWN, NEW]]), COLORS, 20, 40)
    assert tuple(drawn[10, 10]) == COLORS[UNKNOWN]
    assert tuple(drawn[10, 30]) == COLORS[NEW]
    assert tuple(drawn[10, 20]) == (255, 255, 255)
    np.testing.assert_array_equal(nearest(np.array([[1, 2]]), (2, 4)), [[1, 1, 2, 2]] * 2)


def test_a_film_has_a_frame_per_step_and_says_what_it_shows(tmp_path):
    images = {4: np.zeros((2, 8, 8, 3), np.float32)}
    steps = np.array([[0, 1, 1, 2], [2, 1, 1, 0]], np.int32)
    path = save_film(tmp_path, images, steps, GRID, given=1)
    told = json.loads((tmp_path / "generation.json").read_text())
    assert told["frames"] == [{"step": 2, "new": 2, "known": 3}, {"step": 3, "new": 1, "known": 4}]
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (2 * told["height"], told["width"], 3)
    first = sheet[: told["height"], 6:102]  # of the first sample: known, new / new, unknown
    assert tuple(first[10, 10]) == COLORS[KNOWN]
    assert tuple(first[10, 80]) == COLORS[NEW]
    assert tuple(first[90, 80]) == COLORS[UNKNOWN]


@pytest.mark.parametrize(
    ("name", "first"),
    [("llamagen", [1, 0, 0]), ("maskgit", [1, 1, 1]), ("arpg", [1, 0, 0]), ("var", [1, 0, 0])],
)
def test_attention_is_what_the_plan_says(name, first):
    gen = resolve(load_config(f"configs/{name}.py:tiny")).generator
    seen, steps = attention(gen)
    np.testing.assert_array_equal(seen[0, :3], first)
    assert seen.shape == (len(steps), len(steps))
    if name == "var":  # scales see themselves whole
        np.testing.assert_array_equal(seen, steps[:, None] >= steps[None])
        np.testing.assert_array_equal(np.bincount(steps), [1, 4, 9, 16])
    if name == "arpg":  # nobody sees a query
        assert not seen[:, 16:].any()
    assert len(plan_figure(gen.spec, gen.plan, {"a": (seen, steps)}).axes) == (
        5 if name == "var" else 2
    )
    assert isinstance(gen.plan, plans.Plan)

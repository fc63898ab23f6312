"""Determinism: of batches in (seed, step), across restarts, processes and workers."""

import dataclasses
import subprocess
import sys
import time
from typing import ClassVar

import numpy as np
import pytest

from nexttok.config import ConfigError
from nexttok.data import loader as loader_module
from nexttok.data.loader import DataConfig, Split, load_source, make_loader
from nexttok.data.transforms import augment

CFG = DataConfig("digits", "", 8, 1, 10, 0, "affine", 0, 2)


def take(count, cfg=CFG, **kwargs):
    loader = make_loader(cfg, "train", 8, 3, **kwargs)
    out = [next(loader) for _ in range(count)]
    loader.close()
    return out


def same(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


def test_batches_have_their_types():
    batch = take(1)[0]
    assert batch["image"].shape == (8, 8, 8, 1)
    assert batch["image"].dtype == np.float32
    assert batch["label"].dtype == batch["index"].dtype == np.int32
    assert -1.0 <= batch["image"].min() < batch["image"].max() <= 1.0


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    same(take(3), take(3))
    other = next(make_loader(CFG, "train", 8, 4))
    assert not np.array_equal(other["index"], take(1)[0]["index"])


def test_starting_at_a_step_is_running_to_it():
    same(take(5)[3:], take(2, start_step=3))
    same(take(1, start_step=100_000), take(1, start_step=100_000))


def test_state_is_the_step():
    loader = make_loader(CFG, "train", 8, 3)
    next(loader)
    state = loader.get_state()
    expected = [next(loader) for _ in range(2)]
    other = make_loader(CFG, "train", 8, 3)
    other.set_state(state)
    same([next(other) for _ in range(2)], expected)
    assert state == {"next_index": 1}
    loader.set_state(state)
    same([next(loader) for _ in range(2)], expected)


def test_closed_batches_say_so():
    loader = make_loader(CFG, "train", 8, 3)
    loader.close()
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_every_epoch_sees_each_example_once_in_another_order():
    loader = make_loader(CFG, "train", 700, 0)
    first, second = (np.concatenate([next(loader)["index"] for _ in range(2)]) for _ in range(2))
    loader.close()
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(1400))
    assert not np.array_equal(first, second)


def test_two_processes_share_out_what_one_sees():
    whole = take(2)
    parts = [take(2, process_index=i, process_count=2) for i in range(2)]
    for step in range(2):
        for name, rows in whole[step].items():  # in the same order, so that noise is the same
            joined = np.concatenate([p[step][name] for p in parts])
            np.testing.assert_array_equal(joined, rows)


@pytest.mark.slow
def test_workers_change_nothing():
    expected = take(3, start_step=2)
    workers = dataclasses.replace(CFG, workers=2)
    same(take(3, workers, start_step=2), expected)


ABANDON = """
from nexttok.data import loader as loader_module
from nexttok.data.loader import DataConfig, make_loader
if __name__ == "__main__":
    cfg = DataConfig("digits", "", 8, 1, 10, 0, "affine", 2, 2)
    loader = make_loader(cfg, "train", 8, 0)
    kept = [next(loader) for _ in range(2)]
    print(len(kept))
"""


@pytest.mark.slow
def test_abandoned_workers_end_with_the_program(tmp_path):
    (tmp_path / "abandon.py").write_text(ABANDON)
    command = [sys.executable, tmp_path / "abandon.py"]
    paths = {"PYTHONPATH": ":".join(p for p in sys.path if p), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=paths)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def test_augmentation_differs_between_visits():
    source = load_source(CFG, "train", 0)
    first, second = (
        np.stack(
            [
                augment(source[i]["image"], "affine", 8, np.random.default_rng((visit, i)))
                for i in range(60)
            ]
        )
        for visit in (0, 1)
    )
    assert (np.abs(first - second).max((1, 2, 3)) > 1e-3).all()
    original = np.stack([source[i]["image"] for i in range(60)])
    assert 0 < np.square(first - original).mean() < 0.35


def test_the_test_split_is_one_ordered_padded_pass():
    batches = list(make_loader(CFG, "test", 100, 0))
    assert [int(b["mask"].sum()) for b in batches] == [100, 100, 100, 97]
    assert all(len(b["image"]) == 100 for b in batches)
    index = np.concatenate([b["index"][b["mask"]] for b in batches])
    np.testing.assert_array_equal(index, np.arange(397))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(source="mnist"), r"data\.source = 'mnist': expected digits \| photos"),
        (dict(source="folder"), r"data\.source = 'folder'"),
        (dict(num_classes=7), r"data\.num_classes = 7: expected 10, the classes of digits"),
        (dict(source="shapes", num_classes=6), r"data\.augment = 'affine': expected none"),
        (dict(channels=2), r"data\.channels = 2"),
        (dict(augment="mixup"), r"data\.augment = 'mixup'"),
        (dict(resolution=2), r"data\.resolution = 2"),
        (dict(frames=4, augment="none"), r"data\.frames = 4.*shapes \| folder"),
        (dict(prefetch=0), r"data\.prefetch = 0"),
        (dict(source="folder:/nowhere"), r"data\.source = 'folder:/nowhere'.*exists"),
        (dict(source="tfds:not_prepared"), r"data\.source = 'tfds:not_prepared'.*ArrayRecord"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        make_loader(dataclasses.replace(CFG, **change), "train", 8, 0)


def test_there_are_two_splits():
    with pytest.raises(ConfigError, match=r"split = 'validation': expected train \| test"):
        load_source(CFG, "validation", 0)


def test_a_batch_must_divide_over_processes():
    with pytest.raises(ConfigError, match="multiple of the 3 processes"):
        make_loader(CFG, "train", 8, 0, process_count=3)


class Counted(Split):
    """A split that counts what is read of it."""

    read: ClassVar[list[int]] = []

    def augmented(self, index, rng):
        self.read.append(index)
        return super().augmented(index, rng)


def test_batches_are_prepared_ahead_of_a_slow_step(monkeypatch):
    """While nobody asks, the reader fills its buffer: a straggling read then stalls no step."""
    counted = Counted(load_source(CFG, "train", 0).source, CFG)
    monkeypatch.setattr(loader_module, "load_source", lambda *_: counted)
    for depth in (1, 4):
        counted.read.clear()
        batches = make_loader(dataclasses.replace(CFG, prefetch=depth), "train", 10, 0)
        next(batches)
        until = time.monotonic() + 20
        while len(counted.read) < 10 * (1 + depth) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.3)
        # one in hand, `depth` in the buffer, and at most one that waits to enter it
        assert 10 * (1 + depth) <= len(counted.read) <= 10 * (2 + depth), depth
        batches.close()

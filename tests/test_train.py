"""The training loop: resume, accumulation, failure, sharding."""

import json
import os
import resource
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from configs import flextok as config
from nexttok import train
from nexttok.checkpoint import SaveError, good_steps
from nexttok.config import build
from nexttok.mesh import MeshConfig, host_to_device, make_mesh, use_mesh
from nexttok.optim import StageConfig
from nexttok.progress import RATES
from nexttok.rng import stream
from nexttok.tokenizers import flextok
from nexttok.train import Task
from nexttok.writers import JsonlWriter, MultiWriter

ONE = MeshConfig(1, 1, 1, 1, 1)


def one_device():
    return make_mesh(ONE, jax.devices()[:1])


def stage(**changes):
    settings = dict(steps=8, batch_size=4, warmup=2, log_every=2, save_every=2, ema=0.9) | changes
    return build(StageConfig, common.section(**common.stage(**settings)), "train.toy")


def regression(scale=1.0):
    """Noisy linear regression; the noise comes from the step's key."""

    def loss(params, frozen, batch, key):
        noise = 0.1 * jax.random.normal(stream(key, "noise"), batch["y"].shape)
        guess = batch["x"] @ params["out"]["kernel"]
        error = jnp.square(guess[:, 0] - batch["y"] - noise) * scale + frozen
        return error, {"error": error.mean()}

    return Task("toy", lambda key: {"out": {"kernel": jax.random.normal(key, (3, 1))}}, loss)


def batches(start, poison=None):
    step = start
    while True:
        rng = np.random.default_rng(step)
        x = rng.normal(size=(4, 3)).astype(np.float32)
        if step == poison:
            x[0, 0] = np.nan
        yield {"x": x, "y": x.sum(1)}
        step += 1


def run(directory, cfg, loader=batches, task=None):
    writer = MultiWriter([JsonlWriter(os.path.join(directory, "metrics.jsonl"))])
    try:
        return train.fit(
            task or regression(), cfg, 0, one_device(), jnp.zeros(()), loader,
            os.path.join(directory, "checkpoints"), writer, {},
        )  # fmt: skip
    finally:
        writer.close()


def rows(directory):
    with open(os.path.join(directory, "metrics.jsonl")) as file:
        found = [json.loads(line) for line in file]
    for row in found:
        for name in set(RATES) & set(row):
            row.pop(name)
    return found


def test_interrupted_training_resumes_bit_equal(tmp_path):
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    expected = run(whole, stage())

    class Killed(Exception):
        pass

    def dying(start):
        for i, batch in enumerate(batches(start)):
            if start + i == 5:  # after the checkpoint of step 4, inside a logging window
                raise Killed
            yield batch

    with pytest.raises(Killed):
        run(parts, stage(), dying)
    got = run(parts, stage())
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert rows(parts) == rows(whole)
    assert [r["step"] for r in rows(whole)] == [2, 4, 6, 8]


def test_finished_stages_are_not_trained_again(tmp_path):
    expected = run(str(tmp_path), stage())

    def refuse(start):
        raise AssertionError("asked for data")

    jax.tree.map(np.testing.assert_array_equal, run(str(tmp_path), stage(), refuse), expected)


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    poisoned = lambda start: batches(start, poison=6)
    with pytest.raises(
        train.NonFiniteError, match=r"stage toy, step 7: loss is nan.*learning_rate"
    ):
        run(str(tmp_path), stage(), poisoned)
    steps = sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir())
    assert steps == ["4", "6"]
    params = run(str(tmp_path), stage())
    assert np.isfinite(jax.tree.leaves(params)[0]).all()


@pytest.mark.parametrize("at", [4, 7])  # 7: the last step, whose save is the stage's own
def test_sigterm_saves_and_exits_cleanly(tmp_path, at):
    assert threading.current_thread() is threading.main_thread()

    def terminated(start):
        for i, batch in enumerate(batches(start)):
            if start + i == at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.raises(train.Preempted, match=f"saved at step {at + 1}") as stopped:
        run(str(tmp_path), stage(), terminated)
    assert stopped.value.code == 143
    assert (tmp_path / "checkpoints" / str(at + 1)).is_dir()
    got = run(str(tmp_path), stage())
    expected = run(str(tmp_path / "whole"), stage())
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("fault", ["full", "gone"])
def test_a_save_that_fails_says_so_and_keeps_the_last_good_checkpoint(tmp_path, fault):
    """A disk that takes no more bytes, and a folder that nothing can be written to."""
    folder, aside = tmp_path / "checkpoints", tmp_path / "aside"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def failing(start):
        for i, batch in enumerate(batches(start)):
            if start + i == 5:  # step 4 is saved, 6 is not yet
                time.sleep(0.5)
                if fault == "full":
                    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
                else:
                    folder.rename(aside)
                    folder.write_text("no folder")
            yield batch

    writer = MultiWriter([])
    try:
        with pytest.raises(SaveError, match=r"checkpoints/[46] could not be written: .*again$"):
            train.fit(regression(), stage(), 0, one_device(), jnp.zeros(()), failing, str(folder),
                      writer, {})  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writer.close()
    if fault == "gone":
        folder.unlink()
        aside.rename(folder)
    # the manifest of step 4 is written as the next save begins, if it was not before
    assert good_steps(folder)[0] in (2, 4)
    assert not [p.name for p in folder.iterdir() if p.name.startswith(("6", "manifest-6"))]
    got = run(str(tmp_path), stage())
    expected = run(str(tmp_path / "whole"), stage())
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_truncated_checkpoint_is_refused_and_the_previous_one_used(tmp_path, caplog):
    expected = run(str(tmp_path), stage())
    damaged = sorted(
        (tmp_path / "checkpoints" / "8" / "params").rglob("*"),
        key=lambda p: p.is_file() and p.stat().st_size,
    )[-1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    got = run(str(tmp_path), stage())
    assert f"{damaged} has" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_accumulated_gradients_are_the_mean_over_micro_batches_with_their_own_noise():
    task, batch = regression(), next(batches(0))
    params = task.init(jax.random.key(0))
    key = jax.random.key(1)
    loss, metrics, grads = train.loss_and_grad(task, params, jnp.zeros(()), batch, key, 2)
    parts = []
    for i in range(2):
        half = {k: v[2 * i : 2 * i + 2] for k, v in batch.items()}
        part = lambda p, half=half, i=i: task.loss(p, jnp.zeros(()), half, stream(key, i))[0].mean()
        parts.append(jax.value_and_grad(part)(params))
    assert float(loss) == pytest.approx(float(parts[0][0] + parts[1][0]) / 2, rel=1e-5)
    assert float(metrics["error"]) == pytest.approx(float(loss), rel=1e-5)
    jax.tree.map(
        lambda g, a, b: np.testing.assert_allclose(g, (a + b) / 2, rtol=1e-5),
        grads, parts[0][1], parts[1][1],
    )  # fmt: skip


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_is_told_the_step(accumulate):
    def loss(params, frozen, batch, key):
        assert batch["step"].shape == ()
        late = (batch["step"] >= 2).astype(jnp.float32)
        return batch["y"] * 0.0 + params["out"]["bias"].sum() * late, {"late": late}

    task = Task("toy", lambda key: {"out": {"bias": jnp.ones(1)}}, loss)
    cfg = stage(accumulate=accumulate)
    state = train.init_state(task, cfg, 0, train.abstract_state(task, cfg, one_device()))
    step, seen = jax.jit(train.make_step(task, cfg)), []
    for _ in range(4):
        state, metrics = step(state, {}, {"y": jnp.zeros(4)})
        seen.append((float(metrics["late"]), float(metrics["gradient_norm"]) > 0))
    assert seen == [(0.0, False), (0.0, False), (1.0, True), (1.0, True)]


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(2, 2, 2, 1, 1),
        pytest.param(MeshConfig(-1, 1, 1, 1, 1), marks=pytest.mark.slow),
    ],
)
def test_sharded_step_equals_the_single_device_step(mesh):
    section = config.tokenizer()
    section.update(
        registers=4, levels=(5, 5, 5), patch=4, encoder_width=16, encoder_depth=2, decoder_width=16,
        decoder_depth=2, head_dim=8,
    )  # fmt: skip
    tokenizer = flextok.make(section, (8, 8, 1))
    task = Task("toy", tokenizer.init, lambda p, f, b, k: tokenizer.loss(p, b, k))
    cfg = stage(batch_size=16, clip=0.0, optimizer="adamw")
    image = np.random.default_rng(0).uniform(-1, 1, (16, 8, 8, 1)).astype(np.float32)

    def outcome(devices):
        with use_mesh(devices):
            abstract = train.abstract_state(task, cfg, devices)
            state = train.init_state(task, cfg, 0, abstract)
            batch = host_to_device({"image": image}, devices)
            key = jax.random.key(3)
            wide = jax.tree.map(
                lambda p: (
                    p + 0.05 * jnp.sin(jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape)
                ),
                state.params,
            )
            grad = jax.jit(lambda p, b: train.loss_and_grad(task, p, {}, b, key, 1))
            loss, _, grads = grad(wide, batch)
            return float(loss), jax.device_get(grads)

    single, sharded = outcome(one_device()), outcome(make_mesh(mesh))
    assert sharded[0] == pytest.approx(single[0], rel=1e-5)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(single[1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest),
        sharded[1], single[1],
    )  # fmt: skip


@pytest.mark.parametrize("accumulate", [1, 2])
def test_moves_are_added_to_what_no_gradient_trains(accumulate):
    """A moving average of the data, linear, so that micro-batches change nothing."""

    def loss(params, frozen, batch, key):
        del frozen, key
        error = jnp.square(batch["x"] @ params["out"]["kernel"])[:, 0]
        change = 0.1 * (batch["x"].mean(0) - params["book"]["sums"])
        return error, {"error": error.mean(), "moves": {"book": {"sums": change}}}

    init = lambda key: {"out": {"kernel": jnp.ones((3, 1))}, "book": {"sums": jnp.ones(3)}}
    cfg = stage(accumulate=accumulate, weight_decay=0.1, warmup=0)
    task = Task("toy", init, loss)
    step = jax.jit(train.make_step(task, cfg))
    state = jax.jit(train._initializer(task, cfg))(jax.random.key(0))
    expected, source = np.ones(3), batches(0)
    for _ in range(3):
        batch = next(source)
        expected += 0.1 * (batch["x"].mean(0) - expected)
        state, metrics = step(state, jnp.zeros(()), batch)
        assert "moves" not in metrics
    np.testing.assert_allclose(state.params["book"]["sums"], expected, rtol=1e-4)
    assert float(jnp.abs(state.params["out"]["kernel"] - 1.0).max()) > 1e-4

"""Traces of steps, and the rates that progress shows."""

import time

import jax
import jax.numpy as jnp
import pytest

from nexttok import chips, experiment, main, profiling, stages, train
from nexttok.config import ConfigError
from nexttok.mesh import MeshConfig, make_mesh
from nexttok.profiling import ProfileConfig, Tracer, ideal_seconds
from nexttok.progress import Progress
from nexttok.writers import MultiWriter
from tests.test_train import batches, one_device, regression, stage


@pytest.mark.parametrize("window", [(2, 4), (6, 100)])  # the second ends with the stage
def test_a_window_of_steps_is_traced(tmp_path, window):
    writer = MultiWriter([])
    train.fit(
        regression(), stage(), 0, one_device(), jnp.zeros(()), batches,
        str(tmp_path / "checkpoints"), writer, {}, Tracer(window, str(tmp_path / "profile")),
    )  # fmt: skip
    writer.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_window_that_a_run_does_not_reach_is_not_traced(tmp_path):
    tracer = Tracer(ProfileConfig("20:30").window, str(tmp_path / "profile"))
    for step in range(10):
        tracer.reach(step)
    tracer.close()
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("steps", ["3", "5:5", "7:2", "a:b", "-1:3"])
def test_windows_are_checked(steps):
    with pytest.raises(ConfigError, match=r"profile\.steps = .*10:15"):
        ProfileConfig(steps)


def test_rates_tell_where_a_step_goes(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(20, 10, "generator", batch=8, tokens=16, every=0.0)
    progress.ideal = 0.5
    for _ in range(2):
        with progress.waiting():
            now[0] += 0.25
        now[0] += 0.75
    progress.update(12, {"loss": 1.5})
    assert progress.rates == {
        "examples_per_second": 8.0, "step_seconds": 1.0, "data_seconds": 0.25,
        "tokens_per_second": 128.0, "mfu": 0.5,
    }  # fmt: skip
    line = capsys.readouterr().err.split("  ")
    assert line == [
        "generator 12/20", "loss 1.5000", "8 examples/s", "128 tokens/s",
        "1000 ms/step, data 250", "MFU 0.50", "0:08 left\n",
    ]  # fmt: skip
    progress.close()


def test_processes_behind_the_first_are_quiet(capsys):
    progress = Progress(2, 0, "toy", batch=1, shown=False, every=0.0)
    progress.update(2, {"loss": 1.0})
    progress.close()
    assert capsys.readouterr().err == ""


def test_the_best_time_of_a_step_counts_all_devices(monkeypatch):
    mesh = make_mesh(MeshConfig(-1, 1, 1, 1, 1))
    assert ideal_seconds(1e15, mesh) == 0.0  # nobody knows the peak of a CPU
    monkeypatch.setattr(profiling.chips, "find", lambda kind: chips.TPUS["TPU v4"])
    assert ideal_seconds(1e15, mesh) == pytest.approx(1e15 / (8 * 137.5e12))


def test_flops_of_a_step_do_not_count_what_is_computed_twice():
    config = main.load_config("configs/llamagen.py:tiny")

    def asked(remat):
        config.generator.backbone.remat = remat
        exp = experiment.resolve(config)
        shapes = {s: stages.abstract_params(exp, s) for s in exp.train}
        frozen = stages.frozen_for(exp, "generator", {"tokenizer": shapes["tokenizer"]})
        spec = exp.generator.spec
        batch = {
            "ids": jax.ShapeDtypeStruct((2, spec.length), jnp.int32),
            "label": jax.ShapeDtypeStruct((2,), jnp.int32),
        }
        return stages.make_task(exp, "generator").flops(shapes["generator"], frozen, batch)

    assert asked(True) == asked(False) > 0

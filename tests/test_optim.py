"""Optimizers, schedules, decay, moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from nexttok.config import ConfigError, build
from nexttok.optim import (
    OPTIMIZERS,
    StageConfig,
    decay_mask,
    ema_update,
    make_optimizer,
    make_schedule,
)

PARAMS = {
    "backbone": {
        "embedding": jnp.ones((4, 2)),
        "trunk": {"blocks": {"attn": {"wq": {"kernel": jnp.ones((3, 2, 2))}}}},
    },
    "out": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "mask_token": jnp.ones((1, 2)),
}  # fmt: skip


def stage(**changes):
    return build(StageConfig, common.section(**common.stage(**changes)), "train.toy")


def test_schedule_values():
    cosine = make_schedule(
        stage(steps=110, warmup=10, learning_rate=1.0, final_learning_rate=0.2), "t"
    )
    np.testing.assert_allclose([cosine(0), cosine(5), cosine(10)], [0.0, 0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose([cosine(60), cosine(110)], [0.6, 0.2], rtol=1e-5)
    linear = make_schedule(
        stage(steps=110, warmup=10, learning_rate=1.0, final_learning_rate=0.1, schedule="linear"),
        "t",
    )
    found = [linear(5), linear(10), linear(15), linear(62.5), linear(110)]
    np.testing.assert_allclose(found, [0.5, 1.0, 1.0, 0.55, 0.1], rtol=1e-5)
    constant = make_schedule(
        stage(steps=110, warmup=10, learning_rate=1.0, schedule="constant"), "t"
    )
    np.testing.assert_allclose([constant(5), constant(90)], [0.5, 1.0])


def test_decay_reaches_matrices_only():
    mask = decay_mask(PARAMS)
    assert mask["out"] == {"kernel": True, "bias": False}
    assert mask["backbone"]["trunk"]["blocks"]["attn"]["wq"]["kernel"]
    assert not mask["backbone"]["embedding"]
    assert not mask["mask_token"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends_and_decays_only_what_it_should(name):
    cfg = stage(optimizer=name, learning_rate=0.05, warmup=0, steps=200, weight_decay=0.1)
    optimizer = make_optimizer(cfg, "train.toy")
    params, state = PARAMS, optimizer.init(PARAMS)

    @jax.jit
    def step(params, state):
        loss = lambda p: sum(jnp.square(x - 0.5).sum() for x in jax.tree.leaves(p))
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(150):
        params, state = step(params, state)
    for leaf in jax.tree.leaves(params):
        assert float(jnp.abs(leaf - 0.5).max()) < 0.25
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
    assert float(jnp.abs(updates["out"]["bias"]).max()) == 0.0
    assert (float(jnp.abs(updates["out"]["kernel"]).max()) > 0) == (name != "adam")


def test_muon_treats_scanned_layers_one_by_one():
    cfg = stage(optimizer="muon", learning_rate=1.0, warmup=0, weight_decay=0.0, clip=0.0)
    optimizer = make_optimizer(cfg, "train.toy")
    gradient = jax.random.normal(jax.random.key(0), (3, 4, 4))

    def update(gradient):
        tree = {"blocks": {"wq": {"kernel": gradient}}}
        return optimizer.update(tree, optimizer.init(tree), tree)[0]["blocks"]["wq"]["kernel"]

    together = update(gradient)
    apart = jnp.stack([update(g[None])[0] for g in gradient])
    np.testing.assert_allclose(together, apart, rtol=1e-3, atol=1e-4)


def test_ema_closed_form():
    ema, params = {"a": jnp.zeros(())}, {"a": jnp.ones(())}
    early = ema_update(ema, params, 0.99, jnp.asarray(0))
    assert float(early["a"]) == pytest.approx(1 - 1 / 10)
    late = ema_update(ema, params, 0.99, jnp.asarray(10**6))
    assert float(late["a"]) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (dict(optimizer="lamb"), "optimizer"),
        (dict(schedule="step"), "schedule"),
        (dict(warmup=2000), "warmup"),
        (dict(learning_rate=0.0), "learning_rate"),
        (dict(final_learning_rate=1.0), "final_learning_rate"),
        (dict(clip=-1.0), "clip"),
        (dict(b2=1.0), "b2"),
        (dict(weight_decay=-0.1), "weight_decay"),
    ],
)
def test_bad_values_are_refused(change, field):
    with pytest.raises(ConfigError, match=rf"train\.toy\.{field} = "):
        make_optimizer(stage(**change), "train.toy")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rates_multiply_the_steps_of_a_part(name):
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.1), PARAMS)

    def step(**changes):
        cfg = stage(optimizer=name, warmup=0, schedule="constant", clip=0.0, **changes)
        optimizer = make_optimizer(cfg, "t")
        return optimizer.update(grads, optimizer.init(PARAMS), PARAMS)[0]

    plain, scaled = step(), step(rates=("^out/:0.5", "bias$:4", "mask_token:0"))
    jax.tree.map(np.testing.assert_array_equal, scaled["backbone"], plain["backbone"])
    np.testing.assert_allclose(scaled["out"]["kernel"], 0.5 * plain["out"]["kernel"])
    np.testing.assert_allclose(scaled["out"]["bias"], 2.0 * plain["out"]["bias"])
    assert float(jnp.abs(scaled["mask_token"]).max()) == 0.0


@pytest.mark.parametrize("rate", ["out", "out:fast", ":2", "out:-1", "(:2"])
def test_wrong_rates_are_refused(rate):
    with pytest.raises(ConfigError, match=r"config\.t\.rates = .*expected a pattern of paths"):
        make_optimizer(stage(rates=(rate,)), "t")


def test_a_rate_of_nothing_is_refused():
    optimizer = make_optimizer(stage(rates=("discriminator:0.1",)), "t")
    with pytest.raises(
        ConfigError, match=r"config\.t\.rates = 'discriminator': expected a pattern"
    ):
        optimizer.init(PARAMS)


def test_muon_takes_kernels_of_convolutions_as_matrices():
    """The update of a window-to-channels matrix is nearly orthogonal, each step alike in size."""
    params = {"conv": {"kernel": jnp.zeros((3, 3, 2, 8))}}
    grads = {"conv": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 8))}}
    cfg = stage(
        optimizer="muon", learning_rate=1.0, warmup=0, weight_decay=0.0, clip=0.0,
        schedule="constant",
    )  # fmt: skip
    optimizer = make_optimizer(cfg, "t")
    update = optimizer.update(grads, optimizer.init(params), params)[0]["conv"]["kernel"]
    values = np.linalg.svd(np.asarray(update).reshape(18, 8), compute_uv=False)
    assert values.max() / values.min() < 1.8
    given = np.linalg.svd(np.asarray(grads["conv"]["kernel"]).reshape(18, 8), compute_uv=False)
    assert given.max() / given.min() > 2.0

"""The DINO discriminator against official code.

Fixture: SilentView/GigaTok discriminator_dino.py in training mode, with a frozen network of width
32, four blocks, two heads, read before the blocks and after 1 and 3, and heads that see 5 patches;
every parameter was overwritten by `official.seeded`, the heads' vectors u then scaled to unit
length. 16 pictures of 32 x 32 (enlarged), one of 240 x 240, stored at a sixteenth (shrunk);
each 28th readout vector, logits, and one u after the first call.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.interop import dino as interop
from nexttok.nn import dino
from tests.parity import official

CONFIG = dino.DinoConfig(32, 4, 16, 16, 224, (1, 3))


def heads(state):
    """Official entries of the heads -> parameters of dino.Heads."""
    params = {}

    def conv(ours, theirs):
        u = state[f"{theirs}.weight_u"]
        params[ours] = {
            "kernel": state[f"{theirs}.weight_orig"].transpose(2, 1, 0),
            "bias": state[f"{theirs}.bias"],
            "u": u / np.linalg.norm(u),
        }

    for i in range(3):
        for j, name in enumerate((f"heads.{i}.0", f"heads.{i}.1.fn")):
            conv(f"head{i}_conv{j}", f"{name}.0")
            norm = {"scale": state[f"{name}.1.weight"], "bias": state[f"{name}.1.bias"]}
            params[f"head{i}_norm{j}"] = norm
        conv(f"head{i}_out", f"heads.{i}.2")
    return params


@functools.cache
def loaded():
    found = official.load("dino")
    state = official.state_dict(found)
    frozen = interop.convert({k: v for k, v in state.items() if "heads." not in k}, CONFIG)
    state_u = {k: v for k, v in state.items() if "heads." in k}
    return found, jax.tree.map(jnp.asarray, (frozen, heads(state_u)))


@functools.cache
def judged(size):
    found, (frozen, params) = loaded()
    image = found[f"image{size}"]
    if size == 240:
        image = image.repeat(16, 1).repeat(16, 2)
    x = jnp.asarray(image.astype(np.float32) / 127.5 - 1.0)

    @jax.jit
    def judge(x):
        read = dino.readouts(CONFIG, frozen, x)
        logits, made = dino.Heads(5).apply({"params": params}, read, mutable=["moves"])
        return read, logits, made["moves"]

    return found, params, *judge(x)


@pytest.mark.parametrize("size", [32, 240])
def test_readouts_and_logits(size):
    found, _, read, logits, _ = judged(size)
    official.close(jnp.stack([r[0, ::28] for r in read]), found[f"read{size}"])
    official.close(logits, found[f"logits{size}"])


def test_vectors_of_the_spectral_norm_move_by_one_power_iteration():
    found, params, _, _, moves = judged(32)
    name = "head0_conv1"
    official.close(params[name]["u"] + moves[name]["u"], found["u"])
    assert set(moves) == {k for k in params if "norm" not in k}


def test_large_pictures_are_cropped_in_half_of_the_batches():
    x = jax.random.uniform(jax.random.key(0), (1, 230, 230, 3))
    shrunk = np.asarray(dino.fitted(x, 224, None))
    fit = jax.jit(dino.fitted, static_argnums=1)
    seen = [np.asarray(fit(x, 224, jax.random.key(i))) for i in range(24)]
    cropped = [s for s in seen if not np.allclose(s, shrunk, atol=1e-6)]
    assert 5 <= len(cropped) <= 19
    windows = [np.asarray(x[0, i : i + 224, j : j + 224]) for i in range(7) for j in range(7)]
    for crop in cropped:
        assert any(np.array_equal(crop[0], w) for w in windows)


@pytest.mark.parametrize(("batch", "together"), [(16, 8), (9, 3), (7, 7)])
def test_batches_are_normalized_in_parts_of_at_most_eight(batch, together):
    x = jax.random.normal(jax.random.key(0), (batch, 4, 3)) * 3 + 1
    norm = dino.LocalNorm()
    y = norm.apply(norm.init(jax.random.key(1), x), x)
    parts = np.asarray(y).reshape(batch // together, -1, 3)
    np.testing.assert_allclose(parts.mean(1), 0.0, atol=1e-5)
    np.testing.assert_allclose(parts.std(1), 1.0, atol=1e-4)

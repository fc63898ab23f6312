"""The shared transformer: masks, cache, positions, conditioning, scan."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.config import ConfigError
from nexttok.nn import kernels
from nexttok.nn.attention import Attention
from nexttok.nn.cache import empty_cache, enter, leave
from nexttok.nn.kernels import attend
from nexttok.nn.norms import Norm
from nexttok.nn.positions import (
    grid_positions,
    rope_angles,
    rope_table,
    rotate,
    sincos_table,
    time_features,
)
from nexttok.nn.transformer import Transformer, TransformerConfig

BASE = TransformerConfig(width=16, depth=3, head_dim=8, mlp_hidden=32)
X = jax.random.normal(jax.random.key(0), (2, 6, 16))


def randomized(params):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def build(config, x=X, segments=(), **inputs):
    model = Transformer(config, segments)
    params = randomized(jax.jit(model.init)(jax.random.key(0), x, **inputs)["params"])
    return model, {"params": params}


def test_attention_is_its_definition():
    q, k, v = jax.random.normal(jax.random.key(2), (3, 2, 5, 2, 4))
    mask = jnp.tril(jnp.ones((5, 5), bool))
    got = attend(q, k, v, mask, 0.7)
    for b in range(2):
        for h in range(2):
            scores = 0.7 * np.asarray(q[b, :, h] @ k[b, :, h].T)
            weights = np.where(np.asarray(mask), np.exp(scores), 0.0)
            weights /= weights.sum(1, keepdims=True)
            np.testing.assert_allclose(got[b, :, h], weights @ v[b, :, h], rtol=1e-4, atol=1e-5)


def test_runs_leave_out_what_is_not_seen(monkeypatch):
    monkeypatch.setattr(kernels, "PART", 1)
    model, variables = build(BASE)
    steps = jnp.asarray([0, 0, 1, 1, 1, 2])

    @functools.partial(jax.jit, static_argnums=1)
    def both(variables, runs):
        run = lambda v: model.apply(v, X, steps, runs=runs)[0]
        return run(variables), jax.grad(lambda v: (run(v) ** 2).sum())(variables)

    whole = both(variables, ())
    for runs in ((2, 4), (2, 3, 1)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            both(variables, runs), whole,
        )  # fmt: skip
    wrong = both(variables, (1, 5))[0]  # a run that breaks the promise changes what slot 0 reads
    assert np.abs(wrong - whole[0]).max() > 1e-3


@pytest.mark.parametrize("change", [{}, dict(depth=1), dict(adaln=2, post_norm=True)])
@pytest.mark.parametrize("per_example", [False, True])
def test_the_last_layer_computes_what_is_wanted(change, per_example):
    config = dataclasses.replace(BASE, **change)
    steps = jnp.asarray([0, 0, 1, 1, 1, 2])
    steps = jnp.stack([steps, steps[::-1]]) if per_example else steps
    rotary = jnp.asarray(rope_table(grid_positions((6,)), 8))
    inputs = dict(steps=steps, rotary=rotary)
    if config.adaln:
        inputs["cond"] = jax.random.normal(jax.random.key(3), (2, 16))
    model, variables = build(config, segments=(4, 2), **inputs)
    wanted = jnp.asarray([[5, 0, 0], [2, 3, 1]])
    run = jax.jit(lambda v, wanted: model.apply(v, X, wanted=wanted, **inputs)[0])
    full = np.asarray(run(variables, None))
    expected = np.stack([full[b, wanted[b]] for b in range(2)])
    np.testing.assert_allclose(run(variables, wanted), expected, rtol=1e-5, atol=1e-5)


CONFIGS = {
    "plain": {},
    "rms_qk_gated": dict(norm="rms", norm_affine=True, qk_norm="rms", gated=True, bias=True),
    "gelu_layer_qk": dict(activation="gelu", qk_norm="layer", score_scale=0.25),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_block_causal_by_gradient_and_cache_equals_full(name):
    config = dataclasses.replace(BASE, **CONFIGS[name])
    steps = jnp.asarray([0, 1, 1, 2, 2, 2], jnp.int32)
    rotary = jnp.asarray(rope_table(grid_positions((6,)), 8))
    model, variables = build(config, steps=steps, rotary=rotary)

    @jax.jit
    def forward(x):
        return model.apply(variables, x, steps=steps, rotary=rotary)[0]

    full = forward(X)
    influence = np.abs(np.asarray(jax.jit(jax.jacobian(forward))(X)))[0, :, :, 0].max((1, 3))
    for q in range(6):
        for k in range(6):
            assert (influence[q, k] > 1e-6) == bool(steps[k] <= steps[q]), (q, k)

    cache = empty_cache(3, 2, 6, 2, 8)
    parts = []
    for start, end in ((0, 1), (1, 3), (3, 6)):
        out, cache, _ = jax.jit(model.apply, static_argnames="filled")(
            variables,
            X[:, start:end],
            steps=steps[start:end],
            rotary=rotary[start:end],
            cache=enter(cache, steps[start:end]),
            filled=end,
        )
        cache = leave(cache, end - start)
        parts.append(out)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, rtol=1e-4, atol=1e-5)
    assert int(cache.cursor) == 6


@pytest.mark.parametrize("change", [dict(unroll=3), dict(remat=True), dict(remat=True, unroll=2)])
def test_scan_unroll_and_remat_are_one_function(change):
    model, variables = build(BASE)
    other = Transformer(dataclasses.replace(BASE, **change))

    def loss(model):
        return lambda v: jnp.square(model.apply(v, X)[0]).mean()

    a, b = (jax.value_and_grad(loss(m))(variables) for m in (model, other))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


def test_jit_equals_eager():
    model, variables = build(BASE)
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, X)[0], model.apply(variables, X)[0], rtol=1e-5, atol=1e-5
    )


def test_adaln_zero_starts_as_identity_and_modulates_segments_apart():
    config = dataclasses.replace(BASE, adaln=2)
    cond = jax.random.normal(jax.random.key(3), (2, 16))
    fresh = Transformer(config, (4, 2))
    params = fresh.init(jax.random.key(0), X, cond=cond)
    np.testing.assert_array_equal(fresh.apply(params, X, cond=cond)[0], X)
    config = dataclasses.replace(config, depth=1)
    model, variables = build(config, segments=(4, 2), cond=cond)
    kernel = variables["params"]["blocks"]["adaln"]["kernel"]
    second_only = kernel.at[..., : kernel.shape[-1] // 2].set(0.0)
    bias = variables["params"]["blocks"]["adaln"]["bias"].at[..., : kernel.shape[-1] // 2].set(0.0)
    variables["params"]["blocks"]["adaln"] = {"kernel": second_only, "bias": bias}
    moved = np.abs(np.asarray(model.apply(variables, X, cond=cond)[0] - X)).max((0, 2))
    assert (moved[:4] == 0).all()
    assert (moved[4:] > 0).all()


def test_cross_attention_reads_only_where_its_mask_allows():
    config = dataclasses.replace(BASE, cross=True)
    context = jax.random.normal(jax.random.key(4), (2, 5, 12))
    mask = jnp.asarray([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    model, variables = build(config, context=context, context_mask=mask)
    out = model.apply(variables, X, context=context, context_mask=mask)[0]
    other = model.apply(variables, X, context=context.at[:, 2:].add(1.0), context_mask=mask)[0]
    np.testing.assert_array_equal(out[0], other[0])
    assert float(jnp.abs(out[1] - other[1]).max()) > 1e-4


def test_drop_path_and_dropout_act_in_training_only():
    config = dataclasses.replace(BASE, dropout=0.5, drop_path=0.5)
    model, variables = build(config)
    still = model.apply(variables, X)[0]
    np.testing.assert_array_equal(still, model.apply(variables, X)[0])
    a, b = (
        model.apply(variables, X, train=True, rngs={"dropout": jax.random.key(k)})[0]
        for k in (0, 1)
    )
    assert float(jnp.abs(a - b).max()) > 1e-3


@pytest.mark.parametrize("place", ["weights", "attention", "hidden", "mlp"])
def test_dropout_acts_where_it_is_told(place):
    """One place alone moves the output; at the end of a branch it zeroes about half of it."""
    config = dataclasses.replace(BASE, depth=1, dropout=0.5, dropout_on=(place,))
    model, variables = build(config)
    block = dict(variables["params"]["blocks"])
    # the other branch is switched off, so that only a place of its own branch can act
    off = ("mlp", "fc2") if place in ("weights", "attention") else ("attn", "proj")
    block[off[0]] = block[off[0]] | {
        off[1]: {"kernel": jnp.zeros_like(block[off[0]][off[1]]["kernel"])}
    }
    run = jax.jit(model.apply, static_argnames="train")
    key = {"dropout": jax.random.key(3)}
    trained = run({"params": {"blocks": block}}, X, train=True, rngs=key)[0]
    still = run({"params": {"blocks": block}}, X)[0]
    dropped = np.asarray((trained == X) & (still != X)).mean()
    assert float(jnp.abs(trained - still).max()) > 1e-3
    outputs = place in ("attention", "mlp")
    assert dropped == pytest.approx(0.5 if outputs else 0.0, abs=0.15)


def test_drop_path_keeps_the_expectation():
    from nexttok.nn.transformer import drop_path

    x = jnp.ones((20000, 1, 1))
    out = drop_path(x, jnp.asarray(0.3), jax.random.key(0))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    assert float((out == 0).astype(jnp.float32).mean()) == pytest.approx(0.3, abs=0.02)


def test_tap_returns_a_middle_layer():
    model, variables = build(BASE)
    _, _, tapped = model.apply(variables, X, tap=0)
    first = Transformer(dataclasses.replace(BASE, depth=1))
    head = {"params": jax.tree.map(lambda p: p[:1], variables["params"])}
    np.testing.assert_allclose(tapped, first.apply(head, X)[0], rtol=1e-5, atol=1e-5)


def test_rope_depends_on_relative_positions_only():
    q, k = jax.random.normal(jax.random.key(5), (2, 1, 1, 1, 8))

    def score(i, j, interleaved):
        rotary = jnp.asarray(rope_table(np.asarray([[i], [j]]), 8))
        a = rotate(q, rotary[:1], interleaved)
        b = rotate(k, rotary[1:], interleaved)
        return float((a * b).sum())

    for interleaved in (True, False):
        assert score(3, 1, interleaved) == pytest.approx(score(9, 7, interleaved), abs=1e-4)
        assert abs(score(3, 1, interleaved) - score(3, 2, interleaved)) > 1e-4


def test_rope_axes_split_the_pairs():
    table = rope_angles(grid_positions((2, 3)), 8)
    assert table.shape == (6, 4)
    np.testing.assert_allclose(table[4], [1, 0.01, 1, 0.01])  # row 1, column 1
    np.testing.assert_allclose(table[2], [0, 0, 2, 0.02])
    assert rope_angles(grid_positions((2, 2, 2)), 12).shape == (8, 6)
    with pytest.raises(ConfigError, match="head_dim = 6"):
        rope_angles(grid_positions((2, 2)), 6)


def test_sincos_quarters_are_sin_w_cos_w_sin_h_cos_h():
    table = sincos_table((2, 3), 8)
    omega = 1e4 ** (-np.arange(2) / 2)
    h, w = 1, 2
    expected = np.concatenate(
        [np.sin(w * omega), np.cos(w * omega), np.sin(h * omega), np.cos(h * omega)]
    )
    np.testing.assert_allclose(table[5], expected, rtol=1e-6)
    with pytest.raises(ConfigError, match="width = 6"):
        sincos_table((2, 2), 6)


def test_time_features():
    got = time_features(jnp.asarray([0.5]), 4, 256.0, 1000.0)
    args = 500.0 * 256.0 ** (-np.arange(2) / 2)
    np.testing.assert_allclose(got[0], [*np.cos(args), *np.sin(args)], atol=1e-4)


def test_norm_names_are_checked():
    with pytest.raises(ConfigError, match="norm = 'batch'"):
        Norm("batch").init(jax.random.key(0), X)


def test_gated_branches_add_nothing_at_first():
    gated = dataclasses.replace(BASE, residual_gates=True, qk_norm="layer", qk_affine=True)
    model = Transformer(gated)
    fresh = jax.jit(model.init)(jax.random.key(0), X)
    apply = jax.jit(lambda v: model.apply(v, X)[0])
    np.testing.assert_array_equal(apply(fresh), X)
    blocks = fresh["params"]["blocks"]
    assert blocks["attn"]["q_norm"]["scale"].shape == (3, 8)
    ones = blocks | {gate: jnp.ones_like(blocks[gate]) for gate in ("gate1", "gate2")}
    plain = Transformer(dataclasses.replace(gated, residual_gates=False))
    bare = {k: v for k, v in blocks.items() if k not in ("gate1", "gate2")}
    expected = plain.apply({"params": {"blocks": bare}}, X)[0]
    np.testing.assert_allclose(apply({"params": {"blocks": ones}}), expected, atol=1e-5)


def test_cross_attention_turns_queries_alone():
    attention, table = Attention(16, 8), rope_table(grid_positions((6,)), 8)
    context = jax.random.normal(jax.random.key(3), (2, 4, 16))
    params = attention.init_with_output(jax.random.key(0), X, context=context)[1]
    run = lambda rotary: attention.apply(params, X, rotary=jnp.asarray(rotary), context=context)[0]
    turned, still = run(table), attention.apply(params, X, context=context)[0]
    np.testing.assert_allclose(turned[:, 0], still[:, 0], atol=1e-6)  # place 0 is not turned
    assert float(jnp.abs(turned[:, 1:] - still[:, 1:]).min()) > 0
    np.testing.assert_allclose(run(np.zeros_like(table) + table[:1]), still, atol=1e-6)

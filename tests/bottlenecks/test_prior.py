"""A codebook with a jointly trained prior: what the prior sees, whom its loss teaches, and when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from configs import common
from configs import larp as config
from nexttok.bottlenecks import prior, vq
from nexttok.config import ConfigError
from nexttok.tokenizers import autoencoder

SHAPE = (4, 8, 8, 3)


def section(ramp=10, **changes):
    keys = config.prior(6, 16, 2, ramp=ramp, head_dim=8, channels=4, size=12)
    book = {k: changes.pop(k) for k in list(changes) if k in keys["codes"]}
    return keys | changes | dict(codes=keys["codes"] | book)


def make(**changes):
    return prior.make(common.section(**section(**changes)), "tokenizer.bottleneck")


@functools.cache
def example(**changes):
    """The bottleneck, its parameters, latents of three examples, and its jitted answer."""
    model = make(**changes)
    z = jax.random.normal(jax.random.key(1), (3, 6, 4))
    return model, jax.jit(model.init)(jax.random.key(0)), z, jax.jit(model.quantize)


def test_rounds_are_those_of_a_loop():
    b, n, v, rounds = 2, 5, 7, 3
    keys = iter(jax.random.split(jax.random.key(0), 4))
    values, rows = jax.random.normal(next(keys), (b, n, 3)), jax.random.normal(next(keys), (v, 3))
    matrix = jax.random.normal(next(keys), (3, 3))
    ids = jax.random.randint(next(keys), (b, n), 0, v, jnp.int32)
    rng = np.random.default_rng(0)
    replaced = rng.random((b, n - 1)) < 0.5
    drawn = rng.integers(0, v, (rounds, b, n - 1))
    predict = lambda x, i: jnp.cumsum(x, 1) @ matrix * (i + 1.0)
    draw = lambda logits, i: jnp.asarray(drawn[i])
    run = jax.jit(lambda *given: prior.surprise(predict, draw, *given, rounds))
    loss = run(values, ids, rows, jnp.asarray(replaced))
    a, book, m = (np.asarray(x, np.float64) for x in (values, rows, matrix))
    for k in range(b):
        read, total = a[k].copy(), []
        for i in range(rounds):
            for t in range(n - 1):
                logits = book @ (read[: t + 1].sum(0) @ m * (i + 1))
                total.append(-log_softmax(logits)[ids[k, t + 1]])
            read = a[k].copy()
            for t in range(1, n):
                if replaced[k, t - 1]:
                    read[t] = book[drawn[i, k, t - 1]]
        assert float(loss[k]) == pytest.approx(np.mean(total), rel=1e-4)


def test_the_prior_sees_the_past_alone_and_its_logits_are_cosines():
    model, params, *_ = example()
    x = 3.0 * jax.random.normal(jax.random.key(2), (2, 5, 4))
    predict = jax.jit(lambda x: model.prior.apply({"params": params["prior"]}, x))
    logits = 1e3 * predict(x) @ vq.unit(params["embedding"]).T
    assert float(jnp.abs(logits).max()) <= 1e3 * (1 + 1e-5)
    seen = jnp.abs(jax.jit(jax.jacobian(lambda x: predict(x).sum(0)))(x)).max((1, 2, 4))
    assert bool((seen[np.tril_indices(5)] > 0).all())
    assert float(seen[np.triu_indices(5, 1)].max()) == 0.0


@pytest.mark.slow
def test_the_loss_teaches_the_encoder_and_not_the_codebook():
    _, params, z, run = example(beta=0.0, beta_codebook=0.0, replaced=1.0, ramp=0)
    loss = lambda p, z: run(p, z, jax.random.key(3)).loss.sum()
    to_params, to_z = jax.jit(jax.grad(loss, (0, 1)))(params, z)
    assert float(jnp.abs(to_params["embedding"]).max()) == 0.0
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(to_params["prior"]["trunk"]))
    each = jnp.abs(to_z).max(-1)
    assert bool((each[:, :-1] > 0).all())
    assert float(each[:, -1].max()) == 0.0  # nothing reads the last vector


def test_the_share_of_replaced_codes_follows_the_counter():
    _, params, z, run = example()
    shares = []
    for _ in range(12):
        coded = run(params, z, jax.random.key(4))
        shares.append(float(coded.metrics["replaced"]))
        params = params | {"seen": params["seen"] + coded.moves["seen"]}
    np.testing.assert_allclose(shares, [0.05 * min(i, 10) for i in range(12)], atol=1e-6)
    assert float(prior.ramped(jnp.zeros(()), 0, 0.3)) == pytest.approx(0.3)


def test_what_is_replaced_is_drawn_anew_for_every_key():
    still = dict(temperature=0.0, dropout=0.0, ramp=0)
    _, params, z, run = example(**still)
    first, again, other = (run(params, z, jax.random.key(k)).loss for k in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 0
    *_, once = example(**still, rounds=1)
    alone = [once(params, z, jax.random.key(k)).loss for k in (5, 6)]
    np.testing.assert_array_equal(*alone)


def test_tokens_are_the_nearest_codes_and_need_no_prior():
    model, params, z, _ = example()
    coded = model.quantize(params, z, None, False)
    nearest = vq.nearest(vq.unit(z).reshape(-1, 4), vq.unit(params["embedding"])).reshape(3, 6)
    np.testing.assert_array_equal(coded.ids, nearest)
    np.testing.assert_array_equal(model.encode(params, z, jax.random.key(7)).ids, nearest)
    assert not coded.moves
    assert "prior" not in coded.metrics
    *_, cold = example(temperature=1e-6, rounds=1)
    np.testing.assert_array_equal(cold(params, z, jax.random.key(8)).ids, nearest)


@pytest.mark.slow
def test_the_whole_tokenizer():
    """Ids do not depend on the decoder; the loss reaches every parameter but the counter."""
    parts = config.network((2, 4, 4), 16, 1, 6, head_dim=8)
    model = autoencoder.make(config.tokenizer(parts, section()), SHAPE)
    params, encode = jax.jit(model.init)(jax.random.key(0)), jax.jit(model.encode)
    x = jax.random.uniform(jax.random.key(1), (2, *SHAPE), minval=-1.0)
    tokens = encode(params, x)
    assert float(jnp.abs(jax.jit(model.decode)(params, tokens)).max()) == 0.0
    shifted = jax.tree.map(lambda p: p + 0.1, params["decoder"])
    moved = params | {"decoder": shifted}
    np.testing.assert_array_equal(tokens.ids, encode(moved, x).ids)
    loss = lambda p: model.loss(p, {"image": x}, jax.random.key(2))[0].mean()
    grads = jax.jit(jax.grad(loss))(moved)
    assert float(grads["quantizer"].pop("seen")) == 0.0
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(normalize=False, temperature=0.0), r"codes\.normalize = False: expected True"),
        (dict(name="fsq"), r"codes\.name = 'fsq': expected vq"),
        (dict(head_dim=5), r"head_dim = 5: expected a divisor of the width 16"),
        (dict(dropout=1.0), r"dropout = 1\.0"),
        (dict(replaced=1.5), r"replaced = 1\.5: expected 0 \.\. 1"),
        (dict(rounds=0), r"rounds = 0: expected at least 1"),
    ],
)
def test_bad_sections_are_refused(changes, message):
    with pytest.raises(ConfigError, match=rf"config\.tokenizer\.bottleneck\.{message}"):
        make(**changes)


def test_the_length_is_that_of_the_latents():
    with pytest.raises(ConfigError, match=r"bottleneck\.length = 6: expected the 8 latents"):
        make().spec((8,))
    keys = section()
    del keys["codes"]
    with pytest.raises(ConfigError, match=r"bottleneck\.codes = None"):
        prior.make(common.section(**keys), "tokenizer.bottleneck")

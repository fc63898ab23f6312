"""Law table of generators: causality by gradient, cached equals teacher-forced, probability one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import flextok as config
from nexttok import generator, plans
from nexttok.config import ConfigError
from nexttok.contexts import shift
from nexttok.samplers.executor import generate
from nexttok.samplers.logits import warper
from nexttok.tokens import Tokens, TokenSpec


def randomized(params, seed=0):
    """Redraws every parameter, so that zero-initialized layers take part."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def make(length=6, vocab=5, classes=3, **changes):
    section = config.generator()
    section.update(width=16, depth=2, head_dim=8, dropout=0.0)
    section.update(changes)
    return generator.make(section, TokenSpec((length,), vocab, 2, True), classes)


GENERATORS = {
    "shift_categorical": make(),
    "qk_norm_rms": make(qk_norm="rms", norm="rms", unroll=2, remat=True),
}


@pytest.fixture(params=GENERATORS, name="gen")
def _gen(request):
    return GENERATORS[request.param]


def tokens(gen, batch=2):
    shape = (batch, gen.spec.length)
    return jax.random.randint(jax.random.key(7), shape, 0, gen.spec.vocab, jnp.int32)


def test_causality_by_gradient(gen):
    params, ids = randomized(gen.init(jax.random.key(0))), tokens(gen, 1)
    label = jnp.zeros((1,), jnp.int32)
    onehot = jax.nn.one_hot(ids, gen.spec.vocab)

    def logits(soft):
        # a soft token is a mixture of embeddings: ids stay, the table is moved per position
        shifted = soft - onehot
        table = params["backbone"]["embedding"]
        extra = jnp.concatenate([jnp.zeros((1, 1, table.shape[1])), (shifted @ table)[:, :-1]], 1)
        variables = {
            "params": params["backbone"] | {"positions": params["backbone"]["positions"] + extra[0]}
        }
        hidden, _ = gen.backbone.apply(
            variables, gen.context_fns.inputs(ids), jnp.arange(gen.spec.length),
            jnp.asarray(gen.context_fns.steps(gen.full_plan)), label,
        )  # fmt: skip
        return gen.predict(params, hidden)[0]

    jacobian = jax.jacobian(logits)(onehot)[:, :, 0]  # [slot, V, token, V]
    moves = np.abs(np.asarray(jacobian)).max((1, 3))
    for slot, token in itertools.product(range(gen.spec.length), repeat=2):
        assert (moves[slot, token] > 1e-7) == (token < slot), (slot, token)


def test_cached_decode_equals_teacher_forcing(gen):
    params, ids = randomized(gen.init(jax.random.key(0))), tokens(gen)
    label = jnp.asarray([1, -1], jnp.int32)
    full = gen.teacher_forced(params, ids, label)
    cache = gen.init_cache(2, gen.spec.length)
    step = jax.jit(gen.decode_step)
    for i in range(gen.spec.length):
        slot = gen.context_fns.slots(ids, jnp.asarray(i), 1)
        out, cache = step(params, slot, jnp.asarray(i, jnp.int32), cache, label)
        np.testing.assert_allclose(out[:, 0], full[:, i], rtol=1e-5, atol=1e-5)


def test_total_probability_is_one_and_sampling_draws_it():
    gen = make(length=3, vocab=3, classes=2)
    params = randomized(gen.init(jax.random.key(0)), seed=3)
    every = jnp.asarray(list(itertools.product(range(3), repeat=3)), jnp.int32)
    label = jnp.ones((len(every),), jnp.int32)
    nats, _ = gen.loss(params, Tokens(ids=every), label, None)
    joint = np.exp(-np.asarray(nats).sum(1))
    assert joint.sum() == pytest.approx(1.0, abs=1e-5)

    count = 20000
    cache = gen.init_cache(count, 3)
    step = gen.step_fn(params, jnp.ones((count,), jnp.int32), 1.0, warper(1.0, 0, 0.0))
    drawn, stats = jax.jit(lambda key: generate(step, gen.full_plan, count, cache, key))(
        jax.random.key(5)
    )
    assert int(stats["network_calls"]) == 3
    index = np.asarray(drawn) @ np.asarray([9, 3, 1])
    empirical = np.bincount(index, minlength=27) / count
    # E[TV] <= 0.5 sqrt(cells / count) = 0.018
    assert 0.5 * np.abs(empirical - joint).sum() < 0.03


def test_guidance_mixes_logits_and_one_is_neutral(gen):
    params = randomized(gen.init(jax.random.key(0)))
    label = jnp.asarray([0, 2], jnp.int32)

    def draw(scale, copies):
        cache = gen.init_cache(copies * 2, gen.spec.length)
        step = gen.step_fn(params, label, scale, warper(1.0, 0, 0.0))
        return generate(step, gen.full_plan, 2, cache, jax.random.key(1))[0]

    np.testing.assert_array_equal(draw(1.0, 1), draw(1.0 + 1e-7, 2))
    cond = gen.teacher_forced(params, tokens(gen), label)
    uncond = gen.teacher_forced(params, tokens(gen), jnp.full((2,), -1, jnp.int32))
    assert float(jnp.abs(cond - uncond).max()) > 1e-3


def test_a_prefix_of_the_steps_samples_a_prefix_of_the_tokens(gen):
    params = randomized(gen.init(jax.random.key(0)))
    label = jnp.asarray([0, 1], jnp.int32)

    def draw(count):
        step = gen.step_fn(params, label, 1.0, warper(1.0, 0, 0.0))
        cache = gen.init_cache(2, count)
        return generate(step, gen.full_plan.prefix(count), 2, cache, jax.random.key(9))[0]

    np.testing.assert_array_equal(draw(3), draw(6)[:, :3])


def test_scan_and_unroll_share_parameters_and_outputs():
    a, b = make(unroll=1), make(unroll=2)
    params = randomized(a.init(jax.random.key(0)))
    label = jnp.zeros((2,), jnp.int32)
    ids = tokens(a)
    np.testing.assert_allclose(
        a.teacher_forced(params, ids, label), b.teacher_forced(params, ids, label), atol=1e-5
    )


def test_shift_refuses_steps_of_several_tokens():
    with pytest.raises(ConfigError, match=r"generator\.context.*several"):
        shift.validate(plans.Plan(np.arange(4, dtype=np.int32), (2, 2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(width=20), r"generator\.width = 20"),
        (dict(context="upsample"), r"generator\.context = 'upsample'"),
        (dict(head="diffusion"), r"generator\.head = 'diffusion'"),
        (dict(class_dropout=1.0), r"generator\.class_dropout = 1\.0"),
        (dict(width="16"), r"generator\.width = '16'"),
    ],
)
def test_bad_configs_are_refused(change, message):
    section = config.generator()
    with section.ignore_type():
        section.update(change)
    with pytest.raises(ConfigError, match=message):
        generator.make(section, TokenSpec((4,), 5, 2), 3)


def test_categorical_refuses_continuous_tokens():
    with pytest.raises(ConfigError, match=r"generator\.head = 'categorical'"):
        generator.make(config.generator(), TokenSpec((4,), 0, 8), 3)

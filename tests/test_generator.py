"""Law table of generators: who may see what, cached equals uncached, probabilities sum to one."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from nexttok import generator, plans
from nexttok.config import ConfigError
from nexttok.contexts import aligned, noise, query
from nexttok.contexts.contract import Calls
from nexttok.evaluate import array_of
from nexttok.heads.draw import Draw
from nexttok.nn import kernels
from nexttok.nn.cache import leave
from nexttok.samplers.executor import generate
from nexttok.samplers.logits import warper
from nexttok.steps import random_order, runs
from nexttok.tokens import Tokens
from tests.generators import MAKERS, make, params_of, predicted, tokens_of

LIKELY = [n for n in MAKERS if make(n).context.likelihood]
MASKED = [n for n in MAKERS if make(n).plan.kind != "fixed" and n not in LIKELY]
FLOWS = [n for n in MAKERS if make(n).inputs.noised]
MIXTURE = {"name": "gmm", "mixtures": 2, "halved": True}


def some_order(gen, batch=1, seed=3):
    if gen.plan.kind == "fixed":
        return jnp.asarray(gen.plan.order)[None]
    return random_order(jax.random.key(seed), batch, gen.spec.length)


def hidden_of(name, tokens, order):
    gen = make(name)
    lesson = gen.lesson_in(tokens, order, gen.teaching, jax.random.key(0))
    return predicted(name, lesson, jnp.zeros((len(lesson.target),), jnp.int32))


@pytest.mark.parametrize("name", LIKELY)
def test_predictions_depend_on_earlier_steps_only(name):
    gen, n = make(name), make(name).spec.length
    order = some_order(gen)
    base = jax.tree.map(lambda x: jnp.repeat(x, n + 1, axis=0), tokens_of(name, 1))
    rows = jnp.arange(n)
    # row j + 1 has another token j; where inputs are values of coarser scales, another input j
    values = base.values.at[rows + 1, rows].add(1.0)
    ids = base.ids
    if gen.spec.vocab and not gen.spec.scales:
        ids = ids.at[rows + 1, rows].set((ids[0] + 1) % gen.spec.vocab)
    order = jnp.broadcast_to(order, (n + 1, n))
    hidden = np.asarray(hidden_of(name, Tokens(ids, values), order))
    moved = np.abs(hidden[1:] - hidden[:1]).max(-1) > 1e-6  # [changed token, place in order]
    step = np.empty(n, int)
    step[np.asarray(order[0])] = gen.teaching.step_of_slot
    known = gen.plan.known
    for token, place in itertools.product(range(n), range(known, n)):
        if gen.spec.scales:  # the input at a place is that of its own step
            allowed = step[token] <= gen.teaching.step_of_slot[place] and token > 0
        else:
            allowed = step[token] < gen.teaching.step_of_slot[place]
        assert moved[token, place - known] == allowed, (token, place)


@pytest.mark.parametrize("name", ["flextok", "llamagen", "nbp", "nbp_hybrid", "var", "givt"])
def test_products_that_are_left_out_change_nothing(name, monkeypatch):
    gen, tokens = make(name), tokens_of(name, 2)
    order = jnp.broadcast_to(some_order(gen), (2, gen.spec.length))
    cut = gen.lesson_in(tokens, order, gen.teaching, jax.random.key(0))
    monkeypatch.setattr(kernels, "PART", 1)
    assert len(kernels.cuts(cut.slots.runs)) >= len(gen.plan.sizes) - 1
    whole = dataclasses.replace(cut, slots=cut.slots.replace(runs=()))
    label = jnp.zeros((2,), jnp.int32)
    np.testing.assert_allclose(
        predicted(name, cut, label), predicted(name, whole, label), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", MASKED)
def test_masked_predictions_never_depend_on_hidden_tokens(name):
    gen, given = make(name), array_of(tokens_of(name))
    hidden = jax.random.bernoulli(jax.random.key(1), 0.8, given.shape[:2]).at[:, 0].set(False)
    label = jnp.asarray([0, 1], jnp.int32)

    def out(content):
        return predicted(name, gen.context.taught(content, hidden, gen.backbone.prefix, 0), label)

    blind = jnp.where(hidden if given.ndim == 2 else hidden[..., None], 0, given)
    base = out(given)
    np.testing.assert_allclose(base, out(blind.astype(given.dtype)), atol=1e-6)
    assert float(jnp.abs(out(jnp.roll(given, 1, 0)) - base).max()) > 1e-4


def test_dropping_hidden_tokens_equals_masking_them():
    gen, tokens = make("mar"), tokens_of("mar", 2)
    hidden = jnp.asarray([[1, 1, 0, 1, 1, 1, 0, 1, 1], [0, 1, 1, 1, 1, 0, 1, 1, 1]], bool)
    label = jnp.asarray([0, -1], jnp.int32)
    short, full = (
        predicted("mar", gen.context.taught(tokens.values, hidden, 3, visible), label)
        for visible in (3 + 2, 0)
    )
    np.testing.assert_allclose(short, full, atol=1e-5)


def test_noised_cells_see_themselves_and_earlier_ones():
    gen, tokens = make("xar"), tokens_of("xar", 1)
    plan, times = gen.plan, jnp.full((1, 4), 0.3)
    noise = jax.random.normal(jax.random.key(2), tokens.values.shape)
    label = jnp.zeros((1,), jnp.int32)

    def out(values):
        lesson = gen.context.taught(plan, values, times, noise)
        return predicted("xar", lesson, label)

    base = out(tokens.values)
    for cell in range(4):
        moved = out(tokens.values.at[:, 4 * cell].add(1.0)) - base
        changed = np.abs(np.asarray(moved)).max((0, 2)).reshape(4, 4).max(1) > 1e-6
        assert list(changed) == [c >= cell for c in range(4)]


@pytest.mark.parametrize(("name", "given"), [*((n, 0) for n in LIKELY), ("randar", 2), ("arpg", 2)])
def test_cached_decode_equals_teacher_forcing(name, given):
    """Steps are run eagerly with forced tokens; what they hand to the head is compared.

    With `given` tokens known beforehand, as in editing, the others follow from them.
    """
    gen, tokens = make(name), tokens_of(name)
    order, plan = some_order(gen, 2), gen.plan.after(given)
    label, params = jnp.asarray([0, 2], jnp.int32), params_of(name)
    lesson = gen.lesson_in(tokens, order, plan, jax.random.key(0))
    full = predicted(name, lesson, label)
    true = array_of(tokens)
    order = jnp.broadcast_to(order, true.shape[:2])
    ordered = jnp.take_along_axis(true, order if true.ndim == 2 else order[..., None], axis=1)
    seen = []

    @jax.jit
    def apply(slots, cache):
        return gen.network.apply({"params": params["backbone"]}, slots, label, cache)

    def net(slots, cache):
        with jax.disable_jit(False):
            hidden, cache = apply(slots, cache)
        return hidden, None, cache

    def forced(hidden, other, at, key):
        count, first = int(at.count), int(at.first)
        seen.append(hidden[:, :count])
        known = ordered[:, first : first + at.size]
        room = ((0, 0), (0, at.size - known.shape[1])) + ((0, 0),) * (known.ndim - 2)
        return jnp.pad(known, room), None

    def advance(coarse, ids, k):
        ends = np.cumsum(plan.sizes)
        return coarse, tokens.values[:, ends[k] : ends[k + 1]]

    cache = gen.init_cache(2, plan, given)
    state = (cache, None, tokens.values[:, :1]) if gen.spec.scales else cache
    step = gen.context.step(plan, Calls(net, forced, advance=advance), gen.backbone.prefix)
    known = jnp.argsort(order, axis=1) < max(given, plan.known)
    blank = jnp.where(known if true.ndim == 2 else known[..., None], true, jnp.zeros_like(true))
    with jax.disable_jit():
        out, stats = generate(step, plan, blank, state, jax.random.key(1), order, given)
    np.testing.assert_array_equal(out, true)
    assert len(seen) == stats["steps"] == plan.calls - (given > 0)
    full = full[:, given:]
    np.testing.assert_allclose(jnp.concatenate(seen, axis=1), full, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "xar" else pytest.mark.slow) for n in FLOWS]
)
def test_cached_velocities_equal_those_of_one_pass_over_clean_earlier_steps(name):
    """Every step's first call (from noise) and a later one (from half of it, at time 0.5)."""
    gen, tokens = make(name), tokens_of(name, 2)
    label, params, plan = jnp.asarray([0, 2], jnp.int32), params_of(name), gen.plan
    true = tokens.values[:, np.asarray(plan.order)]
    noises, seen = [], []

    @jax.jit
    def apply(slots, cache):
        return gen.network.apply({"params": params["backbone"]}, slots, label, cache)

    def net(slots, cache):
        with jax.disable_jit(False):
            hidden, cache = apply(slots, cache)
        return hidden, None, cache

    def integrate(first, velocity, noise, key, at):
        size = noise.shape[1]
        seen.append((first, velocity(0.5 * noise, 0.5)))
        start = sum(n.shape[1] for n in noises)
        noises.append(noise)
        return true[:, start : start + size]

    calls = Calls(net, print, lambda hidden, other, at: hidden, integrate)
    step = gen.context.step(plan, calls, 0)
    with jax.disable_jit():
        out, _ = generate(
            step, plan, jnp.zeros_like(true), gen.init_cache(2, plan), jax.random.key(1)
        )
    np.testing.assert_allclose(out, tokens.values)
    noise, first = jnp.concatenate(noises, axis=1), 0
    for k, found in enumerate(seen):
        mine = slice(first, first + plan.sizes[k])
        for level, velocity in zip((1.0, 0.5), found, strict=True):
            times = jnp.zeros((2, plan.calls)).at[:, k].set(level)
            clean = jnp.where(jnp.asarray(plan.step_of_slot)[None, :, None] < k, true, 0.0)
            lesson = gen.context.taught(plan, clean, times, noise)
            full = predicted(name, lesson, label)[:, mine]
            np.testing.assert_allclose(velocity, full, rtol=1e-5, atol=2e-5)
        first = mine.stop


@pytest.mark.parametrize(
    ("name", "given"),
    [*((n, 0) for n in ("llamagen", "nbp_hybrid", "var", "randar", "arpg", "xar")),
     ("randar", 3), ("arpg", 3)],
)  # fmt: skip
def test_steps_state_how_much_of_the_cache_is_filled(name, given, monkeypatch):
    """A promise that is too low would hide slots; finer parts than so few tokens would have."""
    for context in (aligned, query, noise):
        monkeypatch.setattr(context, "parts", lambda plan: 4)
    gen = make(name)
    plan = gen.plan.after(given)
    cache = gen.init_cache(2, plan, given)
    promises = []

    def net(slots, cache):
        count = slots.segments[0] if name == "arpg" else len(slots.index)
        assert int(cache.cursor) + count <= slots.filled
        promises.append(slots.filled)
        return jnp.zeros((2, len(slots.index), 4)), None, leave(cache, count)

    def draw(hidden, other, at, key):
        return jnp.zeros((2, at.size), jnp.int32), None

    def integrate(first, velocity, start, key, at):
        velocity(start, 0.5)
        return start

    calls = Calls(net, draw, lambda *_: None, integrate, advance=lambda c, ids, k: (c, values[k]))
    values = [jnp.zeros((2, size, 2)) for size in plan.sizes[1:]]
    step = gen.context.step(plan, calls, gen.backbone.prefix)
    state = (cache, None, jnp.zeros((2, 1, 2))) if gen.spec.scales else cache
    tokens = jnp.zeros((2, 40) if gen.spec.vocab else (2, 40, gen.spec.channels), jnp.int32)
    tokens = tokens if gen.spec.vocab else tokens.astype(jnp.float32)
    order = jnp.broadcast_to(some_order(gen, 2), (2, plan.length))
    for at in itertools.chain.from_iterable(runs(plan, step, max(given, plan.known))):
        state = step.run(tokens, order, at, state, jax.random.key(0))[2]
    assert min(promises) < len(cache.steps)  # not all is read at every step


@pytest.mark.parametrize("name", ["flextok", "nbp_hybrid", "randar", "arpg"])
def test_total_probability_is_one(name):
    section, spec = MAKERS[name]()
    spec = dataclasses.replace(spec, grid=(2, 2) if len(spec.grid) == 2 else (4,), vocab=3)
    section.plan.update(steps=0, schedule="")
    gen = generator.make(section, spec, 3)
    leaves, tree = jax.tree.flatten(jax.eval_shape(gen.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    params = jax.tree.unflatten(
        tree, [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )
    every = jnp.asarray(list(itertools.product(range(3), repeat=4)), jnp.int32)
    order = jnp.broadcast_to(some_order(gen), every.shape)
    lesson = gen.lesson_in(Tokens(ids=every), order, gen.teaching, jax.random.key(0))
    label = jnp.ones((len(every),), jnp.int32)
    hidden = jax.jit(lambda p: gen.predicted(p, lesson, label))(params)
    nats, _ = gen.head.loss(
        gen.head_params(params), hidden, lesson.target, jax.random.key(0), False
    )
    joint = np.exp(-np.asarray(nats).sum(1))
    assert joint.sum() == pytest.approx(1.0, abs=1e-5)
    if name != "flextok":
        return
    count = 20000
    draw = Draw(warper(1.0, 0, 0.0), 1.0)
    step = gen.step(params, jnp.ones((count,), jnp.int32), gen.plan, draw)
    blank = jnp.zeros((count, 4), jnp.int32)
    drawn, stats = jax.jit(
        lambda key: generate(step, gen.plan, blank, gen.init_cache(count, gen.plan), key)
    )(jax.random.key(5))
    assert int(stats["network_calls"]) == 4
    empirical = np.bincount(np.asarray(drawn) @ np.asarray([27, 9, 3, 1]), minlength=81) / count
    # E[TV] <= 0.5 sqrt(cells / count) = 0.032
    assert 0.5 * np.abs(empirical - joint).sum() < 0.045


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llamagen", {"context": {"name": "upsample"}},
         r"context\.name = 'upsample': expected block \| query \| shift, as .* has no scales"),
        ("llamagen", {"plan.name": "rows"},
         r"'shift': expected block \| query, as .* several tokens in one step \(sizes \(3, 3\)"),
        ("var", {"context": {"name": "block"}},
         r"'block': expected query \| upsample, as step sizes differ \(sizes \(1, 4, 9\)"),
        ("mar", {"context": {"name": "block"}}, r"'block': expected mask \| query, as .* fixed"),
        ("maskgit", {"context": {"name": "query", "layout": "separate"}}, r"'query': expected ma"),
        ("maskgit", {"context": {"name": "shift"}}, r"'shift': expected mask, as .* on confidence"),
        ("nbp", {"context": {"name": "noise"}},
         r"'noise': expected block \| query, as these tokens are discrete"),
        ("xar", {"plan": common.plan("random", steps=4)}, r"'noise': expected mask \| query, as"),
        ("xar_scales", {"context": {"name": "upsample"}, "head": MIXTURE},
         r"'upsample': expected noise \| query, as these tokens are continuous"),
        ("xar", {"head": MIXTURE}, r"head\.name = 'gmm': expected flow"),
        ("var", {"backbone.condition": ("start", "prefix"), "backbone.prefix": 1},
         r"backbone\.prefix = 1: expected 0 with context upsample"),
        ("randar", {"backbone.condition": ("prefix",), "backbone.prefix": 1},
         r"backbone\.prefix = 1: expected 0 with context query"),
        ("xar", {"backbone.condition": ("adaln", "prefix"), "backbone.prefix": 2},
         r"backbone\.prefix = 2: expected 0 with context noise"),
        ("llamagen", {"plan.block": 2}, r"plan\.block = 2: expected 0, as plan raster does not"),
        ("nbp", {"plan.steps": 2}, r"plan\.steps = 2: expected 0, as plan blocks does not read"),
        ("xar", {"plan.lead": True}, r"plan\.lead = True: expected False, as plan cells"),
        ("var", {"plan.schedule": "cosine"}, r"plan\.schedule = 'cosine': expected '', as plan"),
        ("mar", {"head": {"name": "categorical", "bias": False, "init": "zeros", "tied": False,
                          "smoothing": 0.0,
                          "reserved": 0}}, r"'categorical': expected gmm, diffusion"),
        ("mar", {"plan.name": "confidence"}, r"head\.name = 'diffusion': expected gmm"),
        ("maskgit", {"plan.steps": 7}, r"plan\.steps = 7: expected 0 \.\. 6 tokens"),
        ("maskgit", {"plan": common.plan()}, r"'mask': expected block \| query \| shift, as"),
        ("nbp", {"plan.block": 4}, r"plan\.block = 4: expected a divisor of the 6 tokens"),
        ("nbp", {"plan.given": 3}, r"plan\.given = 3: expected 0 \.\. below 3 steps"),
        ("nbp", {"plan.given": 1}, r"backbone\.condition = \('start',\): expected prefix, adaln"),
        ("nbp_hybrid", {"plan.given": 1}, r"plan\.given = 1: expected 0 with lead"),
        ("xar", {"plan.name": "blocks", "plan.block": 4, "plan.given": 1},
         r"plan\.given = 1: expected 0, as only the contexts shift and block"),
        ("xar", {"plan.given": 1}, r"plan\.given = 1: expected 0, as plan cells does not read it"),
        ("nbp", {"backbone.prefix_words": True}, r"prefix_words = True: expected False unless"),
        ("llamagen", {"plan.name": "scales"}, r"plan\.name = 'scales'.*no scales"),
        ("llamagen", {"plan.name": "spiral"}, r"plan\.name = 'spiral': expected raster"),
        ("arpg", {"context.layout": "interleaved"}, r"backbone\.name = 'cross_decoder'"),
        ("flextok", {"head.name": "softmax"}, r"head\.name = 'softmax': expected categorical"),
        ("flextok", {"backbone.norm": "batch"}, r"backbone\.norm = 'batch': expected layer"),
        ("flextok", {"backbone.positions": ("sin",)}, r"backbone\.positions"),
        ("llamagen", {"backbone.head_dim": 2}, r"head_dim = 2: expected a multiple of 4"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(name, change, message):
    section, spec = MAKERS[name]()
    for key, value in change.items():
        target = section
        *parents, last = key.split(".")
        for parent in parents:
            target = target[parent]
        with section.unlocked():
            target[last] = type(section)(value) if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=message):
        generator.make(section, spec, 3)


def test_schedules_of_the_papers():
    def sizes(schedule, steps, tokens=256):
        return plans.scheduled(plans.PlanConfig("random", 0, steps, schedule, False, 0), tokens)

    arccos, cosine, randar = sizes("arccos", 64), sizes("cosine", 64), sizes("randar", 88)
    assert all(sum(s) == 256 for s in (arccos, cosine, randar))
    assert arccos[:4] == (3, 3, 2, 3)
    assert arccos[-4:] == (7, 10, 12, 28)
    assert cosine[:13] == (1,) * 13
    assert len(randar) == 88
    assert sizes("cosine", 256) == (1,) * 256
    assert sizes("", 4, 10) == (2, 3, 3, 2)

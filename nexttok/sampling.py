"""Sampling an experiment's generator: plan, order, cache, guidance, and what is known before."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nexttok import searches, views
from nexttok.config import check
from nexttok.experiment import Experiment
from nexttok.rng import stream
from nexttok.samplers.adaptive import adaptive_zipar
from nexttok.samplers.drafts.distinct import beams, branching
from nexttok.samplers.drafts.jacobi import jacobi
from nexttok.samplers.drafts.model import from_model
from nexttok.samplers.drafts.ngram import ngram
from nexttok.samplers.executor import generate
from nexttok.samplers.lantern import lantern, nearest_codes
from nexttok.samplers.locality import locality_orders
from nexttok.samplers.options import CAUSAL, SEARCHES, TRAINED
from nexttok.samplers.parallel import reveal
from nexttok.samplers.speculative import speculate
from nexttok.samplers.zipar import zipar
from nexttok.steps import random_order

MADE = {
    "tts_var": searches.tts_var, "revocable": searches.revoking, "tcts": searches.revoking,
}  # fmt: skip


def sampler(exp: Experiment, known: Bool[np.ndarray, "N"] | None = None):
    """A jitted (params, label [B], key, given [B, N, ...]) -> (tokens [B, n, ...], stats).

    Args:
      exp: the experiment; params are {tokenizer, generator}, with "drafter" where another model
        guesses, "ngrams" (a Table of them) where counts do, and what `tables` makes.
      known: tokens that are given and stay. A plan of free order starts from them; along a fixed
        order each is put in place of what was drawn. None draws everything, and of `given` reads
        only the tokens of steps that the plan gives.

    Raises:
      ConfigError: known tokens with a context or a sampler that cannot keep them.
    """
    gen, cfg, plan = exp.generator, exp.sample, exp.plan
    name = exp.sampler.name
    if name in (*CAUSAL, *SEARCHES, *MADE, "lpd", "parallel"):
        check(known is None, "sampler.name", name, "plan to edit an image")
    if name in SEARCHES:
        return searches.strings(exp)
    if name in MADE:
        return MADE[name](exp)
    if name in CAUSAL:
        return _causal_sampler(exp)
    if name == "parallel":
        return _parallel_sampler(exp)
    count = 0
    if known is not None:
        kept = "a model with plan random or confidence, or context upsample"
        check(plan.length == gen.spec.length, "sample.tokens", plan.length, "0 to edit an image")
        fits = plan.kind != "fixed" or gen.inputs.levels > 0
        check(fits, "generator.plan.name", exp.config.generator.plan.name, kept)
        count = int(known.sum()) if plan.kind != "fixed" else 0
    steps = plan.after(count)
    strength = cfg.strength
    scale = None if strength.off else lambda at: strength.scale(at, steps)
    own = getattr(gen.head, "steps", 0)
    solving = exp.sampler.solving(steps.calls - (count > 0), own)
    draw = dataclasses.replace(cfg.draw, solver_steps=solving)
    pool = None
    if name == "lpd":
        orders = locality_orders(gen.spec.grid, plan.sizes, exp.sampler.orders or 64)
        pool = jnp.asarray(orders)
    opening = (count,) if count else ()  # of known tokens, which no step predicts
    reuse = exp.sampler.merged(steps.sizes[len(opening) :])
    run = dataclasses.replace(steps, sizes=(*opening, *map(sum, reuse))) if reuse else steps

    @jax.jit
    def sample(params: dict, label: Int[Array, "B"], key: Array, given: Array) -> tuple:
        batch = len(label)
        state = gen.init_cache(batch * (1 if scale is None else 2), steps, count)
        advance = None
        if gen.inputs.levels:
            state = (state, *exp.tokenizer.start(batch))
            advance = functools.partial(exp.tokenizer.advance, params["tokenizer"])
        order = None
        if plan.kind != "fixed":
            first = None if known is None else jnp.asarray(known)
            order = random_order(stream(key, "order"), batch, plan.length, first)
        if pool is not None:
            order = pool[jax.random.randint(stream(key, "order"), (batch,), 0, len(pool))]
        step = gen.step(
            params["generator"], label, steps, draw, scale, cfg.confidence, advance,
            forced=None if known is None or count else (jnp.asarray(known), given), reuse=reuse,
        )  # fmt: skip
        tokens, stats = generate(step, run, given[:, : plan.length], state, key, order, count)
        if own and not gen.inputs.noised:  # a network of its own
            stats["head_calls"] = sum(solving) or own * len(steps.sizes[len(opening) :])
        if reuse:
            stats["local_calls"] = sum(map(len, reuse)) - len(reuse)
        return tokens, stats

    return sample


def tables(exp: Experiment, tokenizer: dict) -> dict:
    """What a sampler reads of the tokenizer's parameters, made once: {"near": nearest codes [V, k]}
    of LANTERN, {} of others."""
    if not exp.sampler.relax:
        return {}
    vocab = exp.generator.spec.vocab

    @jax.jit
    def near(quantizer):
        every = jnp.arange(vocab, dtype=jnp.int32)
        codes = exp.tokenizer.bottleneck.ids_to_values(quantizer, every)
        return nearest_codes(codes, exp.sampler.looked_at(vocab))

    return {"near": near(tokenizer["quantizer"])}


def _causal_sampler(exp):
    """As `sampler`, by a sampler that sees the generator as a causal model."""
    gen, plan, choice, strength = exp.generator, exp.plan, exp.sampler, exp.sample.strength
    scale = None if strength.off else lambda at: strength.scale(at, plan)
    warp, guided = exp.sample.warp, (scale, exp.sample.mix)

    def drafter(params, label):
        if choice.name == "jacobi":
            columns = gen.spec.grid[1] if len(gen.spec.grid) == 2 else 0
            init = choice.init or "random"
            return jacobi(plan.length, gen.spec.vocab, choice.window or 15, init, columns)
        if choice.name == "ngram":
            return ngram(params["ngrams"], gen.spec.vocab, choice.successors)
        if choice.name in TRAINED:
            theirs = params["drafter"], params["generator"]
            return exp.drafter.guesser(*theirs, label, plan, *guided, warp, choice)
        if choice.name == "draft":
            other, theirs = exp.draft.generator, params["drafter"]
        else:
            layers = choice.guessing(gen.backbone.depth)
            other, theirs = views.shallow(gen, params["generator"], layers)
        model = views.causal(other, theirs, label, plan, *guided)
        if choice.branches:
            return branching(model, warp, choice.branches)
        if choice.beams:
            return beams(model, warp, choice.beams, choice.guesses)
        return from_model(model, warp, choice.guesses, choice.controlled())

    @jax.jit
    def sample(params: dict, label: Int[Array, "B"], key: Array, given: Array) -> tuple:
        del given
        halves = choice.name in TRAINED and exp.drafter.reads_halves
        model = views.causal(gen, params["generator"], label, plan, *guided, halves)
        if choice.name == "zipar" and choice.adaptive:
            grid, least = gen.spec.grid, int(choice.width(gen.spec.grid))
            tokens, stats = adaptive_zipar(model, grid, least, warp, len(label), key)
        elif choice.name == "zipar":
            tokens, stats = zipar(model, choice.wavefront(gen.spec.grid), warp, len(label), key)
        else:
            budget = choice.relax, choice.relative
            relax = lantern(params["near"], *budget) if choice.relax else None
            guesses = drafter(params, label)
            tokens, stats = speculate(model, guesses, warp, len(label), key, relax)
        return jnp.take(tokens, jnp.argsort(jnp.asarray(plan.order)), axis=1), stats

    return sample


def _parallel_sampler(exp):
    """As `sampler`, by a sampler that chooses the order of a masked model."""
    gen, plan, choice, strength = exp.generator, exp.plan, exp.sampler, exp.sample.strength
    scale = None if strength.off else lambda at: strength.scale(at, plan)

    @jax.jit
    def sample(params: dict, label: Int[Array, "B"], key: Array, given: Array) -> tuple:
        del given
        model = views.masked(gen, params["generator"], label, plan, scale, exp.sample.mix)
        limits = choice.threshold or 0.9, choice.factor
        return reveal(model, exp.sample.warp, len(label), key, *limits)

    return sample


def blank(exp: Experiment, batch: int) -> Int[np.ndarray, "B N"] | Float[np.ndarray, "B N C"]:
    """Tokens of which nothing is read."""
    spec = exp.generator.spec
    one = np.zeros((), np.int32) if spec.vocab else np.zeros((spec.channels,), np.float32)
    return np.broadcast_to(one, (batch, spec.length, *one.shape))


def known_tokens(exp: Experiment, mask: Float[np.ndarray, "H W"]) -> Bool[np.ndarray, "N"]:
    """Tokens that a mask leaves alone.

    Args:
      exp: gives the token grid, or the scales of a pyramid.
      mask: 1 where the picture is to be drawn anew, 0 where it stays.

    Returns:
      True where nothing of a token's cell is masked; in a pyramid, where less than half is.

    Raises:
      ConfigError: tokens without a place in the picture.
    """
    spec = exp.generator.spec
    flat = len(spec.grid) == 2 or bool(spec.scales)
    check(flat, "sample.mask", exp.sample.mask, "'', as these tokens have no place in the picture")
    if not spec.scales:
        return (_cells(mask, *spec.grid) == 0).reshape(-1)
    return np.concatenate([(_cells(mask, s, s) < 0.5).reshape(-1) for s in spec.scales])


def _cells(mask, rows, columns):
    """Mean of the mask over the cells of a grid."""
    edges = [np.linspace(0, n, k + 1) for n, k in zip(mask.shape, (rows, columns), strict=True)]
    lows = [np.floor(e[:-1]).astype(int) for e in edges]
    highs = [np.ceil(e[1:]).astype(int) for e in edges]
    return np.asarray(
        [
            [mask[a:b, c:d].mean() for c, d in zip(lows[1], highs[1], strict=True)]
            for a, b in zip(lows[0], highs[0], strict=True)
        ]
    )

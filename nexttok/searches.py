"""Samplers of an experiment that follow several candidates, TTS-VAR over scales and searches, or
that revoke what they drew."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from nexttok import views
from nexttok.evals import classifier
from nexttok.experiment import Experiment
from nexttok.rng import stream
from nexttok.samplers import scaling
from nexttok.samplers.revocable import revocable
from nexttok.samplers.search import assigned, beams, contrastive_search
from nexttok.tokens import Tokens


def tts_var(exp: Experiment):
    """As sampling.sampler, by scaling.py; params hold "judge" where the sampler is `judged`."""
    gen, cfg, plan, choice = exp.generator, exp.sample, exp.plan, exp.sampler
    strength, ends = cfg.strength, tuple(itertools.accumulate(plan.sizes))
    scale = None if strength.off else lambda at: strength.scale(at, plan)
    widths = scaling.schedule(choice.particles, plan.calls)
    net = classifier.network(exp.data.num_classes)
    reward, features = choice.reward or "class", choice.features or "pca"

    @jax.jit
    def sample(params: dict, label: Int[Array, "B"], key: Array, given: Array) -> tuple:
        del given
        rows = len(label) * widths[0]
        advance = functools.partial(exp.tokenizer.advance, params["tokenizer"])

        def step(width):
            labels = jnp.repeat(label, width)
            return gen.step(params["generator"], labels, plan, cfg.draw, scale, 0.0, advance)

        def take(state, rows):
            cache, *others = state
            return views.rows_of(cache, rows, scale is not None), *(x[rows] for x in others)

        def seen(k, tokens):
            """Logits and features of the pictures that the scales up to k decode to."""
            keep = jnp.full((len(tokens),), ends[k], jnp.int32)
            ids = Tokens(ids=tokens[:, : ends[k]])
            x = exp.tokenizer.decode(params["tokenizer"], ids, stream(key, "decode", k), keep)
            return net.apply({"params": params["judge"]}, jnp.clip(x, -1.0, 1.0))

        def rewarded(k, tokens):
            labels = jnp.repeat(label, len(tokens) // len(label))
            return scaling.REWARDS[reward](seen(k, tokens)[0], labels)

        def described(k, tokens, state):
            if features == "class":
                return seen(k, tokens)[1]
            return scaling.principal(state[1]) if features == "pca" else state[1].mean((1, 2))

        selection = scaling.Selection(
            choice.early or plan.calls // 2,
            None if features == "none" else described,
            None if choice.potential == "none" else rewarded,
            choice.potential or "value",
            choice.strength or 10.0,
        )
        guided = 1 if scale is None else 2
        state = (gen.init_cache(rows * guided, plan), *exp.tokenizer.start(rows))
        return scaling.search(step, take, plan, widths, len(label), state, key, selection)

    return sample


def strings(exp: Experiment):
    """As sampling.sampler, by the searches of samplers/search.py. Rows of one class share a search:
    its strings are theirs, the best (or first drawn) first."""
    gen, plan, choice, strength = exp.generator, exp.plan, exp.sampler, exp.sample.strength
    scale = None if strength.off else lambda at: strength.scale(at, plan)
    warp, n, classes = exp.sample.warp, plan.length, exp.data.num_classes
    width = 1 if choice.name == "contrastive_search" else choice.beams or 4
    groups = (choice.groups or width) if choice.name == "diverse_beam" else 1

    def found(model, searches, key):
        """Strings [S, K, N], and how many of the K there are."""
        if choice.name == "contrastive_search":
            options = choice.candidates or 5, choice.alpha or 0.6
            one = contrastive_search(model, warp, searches, *options)
            return one[:, None], jnp.ones((searches,), jnp.int32)
        drawn = key if choice.name == "stochastic_beam" else None
        several, log_prob = beams(
            model, warp, searches, width, groups, choice.penalty or 0.5, drawn
        )
        return several, jnp.isfinite(log_prob).sum(1)

    @jax.jit
    def sample(params: dict, label: Int[Array, "B"], key: Array, given: Array) -> tuple:
        del given
        shared = len(label) if choice.name == "contrastive_search" else width
        labels, search, place = assigned(label, shared, classes)
        rows = jnp.repeat(labels, width)
        model = views.causal(gen, params["generator"], rows, plan, scale, exp.sample.mix)
        tokens, count = found(model, len(labels), stream(key, "search"))
        tokens = tokens[search, place % count[search]]
        calls = n + (choice.name == "contrastive_search")
        stats = {"steps": n, "network_calls": calls, "rows": calls * len(rows) / len(label)}
        return jnp.take(tokens, jnp.argsort(jnp.asarray(plan.order)), axis=1), stats

    return sample


def revoking(exp: Experiment):
    """As sampling.sampler, by revocable.py: as many tokens stay as the plan has drawn by then; of
    tcts those that its selector is surest of, and `config.sample.confidence` is not read."""
    gen, plan, strength = exp.generator, exp.plan, exp.sample.strength
    scale = None if strength.off else lambda at: strength.scale(at, plan)
    kept, chosen = tuple(itertools.accumulate(plan.sizes)), exp.sampler.name == "tcts"

    @jax.jit
    def sample(params: dict, label: Int[Array, "B"], key: Array, given: Array) -> tuple:
        del given
        model = views.masked(gen, params["generator"], label, plan, scale, exp.sample.mix)
        score, noise = None, exp.sample.confidence
        if chosen:
            score, noise = exp.drafter.scorer(params["drafter"], label), 0.0
        tokens, stats = revocable(
            model, exp.sample.warp, kept, len(label), key, score, exp.sampler.persistent, noise
        )
        return tokens, stats | ({"selector_calls": len(kept)} if chosen else {})

    return sample

"""EAGLE: one layer guesses a generator's next hidden state from the last one and the token drawn.

(Li et al., "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty", 2024. LANTERN
relaxes its verification for visual tokens: samplers/lantern.py.) Guesses are a chain; the paper
draws a tree. The generator's embeddings and head are read as they are.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok import views
from nexttok.causal import Causal
from nexttok.drafters.contract import against, dropped
from nexttok.generator import Generator
from nexttok.nn import eagle
from nexttok.nn.cache import Cache, ragged
from nexttok.nn.slots import class_slots
from nexttok.rng import stream
from nexttok.samplers.drafts.model import from_model
from nexttok.tokens import Tokens

NOISE = 0.1  # uniform, on the states that it learns from, as those that it will read are guesses
BY_LAW = 0.1  # weight of the cross-entropy beside the regression of states


class Reading(NamedTuple):
    """State of the drafter: its cache, and the hidden state that predicted the last token."""

    cache: Cache
    before: Float[Array, "B F"]


@dataclasses.dataclass(frozen=True)
class Eagle:
    """`config.drafter` of name eagle (see contract.py)."""

    gen: Generator
    reads_halves = True

    @functools.cached_property
    def network(self):
        """The layer, and what it reads."""
        return eagle.Eagle(self.gen.backbone, self.gen.inputs, self.gen.dtype)

    def init(self, rng):
        """{bridge, trunk}."""
        gen = self.gen
        blank = Tokens(ids=jnp.zeros((1, gen.spec.length), jnp.int32))
        slots = gen.lesson(blank, stream(rng, "lesson")).slots
        before = jnp.zeros((*slots.content.shape[:2], gen.backbone.width))
        key, label = stream(rng, "network"), jnp.zeros((1,), jnp.int32)
        params = self.network.init(key, slots, label, before)["params"]
        return {name: params[name] for name in ("bridge", "trunk")}

    def _read(self, params, base, slots, label, before, cache=None):
        params = params | {"embed": base["backbone"]["embed"]}
        return self.network.apply({"params": params}, slots, label, before, cache)

    def loss(self, params, base, tokens, label, rng):
        """Smooth L1 distance of the states, and a little cross-entropy by the law, [B, N]."""
        gen, label = self.gen, dropped(self.gen, label, rng)
        lesson = gen.lesson(tokens, rng)
        first, stride = lesson.outputs
        last = first + stride * lesson.target.shape[1]
        hidden = gen.hidden(base, lesson.slots, label)
        noise = jax.random.uniform(stream(rng, "noise"), hidden.shape, minval=-NOISE, maxval=NOISE)
        before = jnp.pad(hidden + noise.astype(hidden.dtype), ((0, 0), (1, 0), (0, 0)))[:, :-1]
        guess, _ = self._read(params, base, lesson.slots, label, before)
        hidden, guess = (x[:, first:last:stride] for x in (hidden, guess))
        weights = gen.head_params(base)
        law = jax.nn.softmax(gen.head.outputs(weights, hidden), axis=-1)
        nats, kept = against(law, gen.head.outputs(weights, guess))
        apart = jnp.abs(guess - hidden).astype(jnp.float32)
        smooth = jnp.where(apart < 1.0, 0.5 * jnp.square(apart), apart - 0.5).mean(-1)
        return smooth + BY_LAW * nats, {"kept": kept.mean(), "regression": smooth.mean()}

    def guesser(self, params, base, label, plan, scale, mix, warp, choice):
        """Token by token; after each verification it reads the generator's own states."""
        gen, n, prefix = self.gen, plan.length, self.gen.backbone.prefix
        labels = label if scale is None else jnp.concatenate([label, jnp.full_like(label, -1)])
        twice = lambda x: x if scale is None else jnp.concatenate(jnp.split(x, 2, axis=-1))

        def read(tokens, before, length, cache):
            slots, at = views.window(gen, plan, tokens, None, length)
            slots = slots if scale is None else slots.twice()
            hidden, cache = self._read(params, base, slots, labels, twice(before), cache)
            logits = views.predicted(gen, base, hidden, at, n, scale, mix)
            return logits, views.beside(hidden, scale), cache

        def start(batch, room):
            rows, width = len(labels), gen.backbone.width
            one = dataclasses.replace(gen.backbone, depth=1)
            room = max(room, choice.guesses + 1)
            cache = gen.kind.init_cache(one, rows, prefix + n + room, gen.dtype)
            if prefix:
                slots = class_slots(jnp.zeros((rows, 1), jnp.int32), prefix)
                none = jnp.zeros((rows, prefix, width), gen.dtype)
                _, cache = self._read(params, base, slots, labels, none, cache)
            return Reading(ragged(cache), jnp.zeros((batch, width * rows // batch), gen.dtype))

        def score(tokens, parents, length, state):
            del parents
            logits, hidden, cache = read(tokens, state.before[:, None], length, state.cache)
            return logits, hidden, Reading(cache, hidden[:, -1].astype(gen.dtype))

        def correct(state, outcome):
            """Reads the guesses anew, with the states that the generator had in front of them."""
            states, guesses = outcome.hidden.astype(gen.dtype), outcome.draft.tokens[:, 1:]
            _, _, cache = read(guesses, states[:, :-1], outcome.before + 1, state.cache)
            return Reading(cache, states[jnp.arange(len(states)), outcome.verdict.accepted])

        model = Causal(n, gen.spec.vocab, start, score)
        return from_model(model, warp, choice.guesses, choice.controlled(), correct)

"""Context `query`: content slots hold tokens; the slot that predicts knows a position only.

    interleaved   start  ?a  a  ?b  b  ?c      one causal sequence (RandAR)
    separate      start  a   b  |  ?a ?b ?c    queries read the content, not each other (ARPG)

Training predicts one token at a time, so that any order and any grouping can be sampled with an
ordinary cache. (Pang et al., "RandAR: Decoder-only Autoregressive Visual Generation in Random
Orders", 2024; Li et al., "Autoregressive Image Generation with Randomized Parallel Decoding",
2025.)
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from nexttok.config import build, check
from nexttok.contexts.contract import Calls, Lesson, Needs
from nexttok.nn.cache import UNFILLED
from nexttok.nn.slots import QUERY, START, TOKEN, Slots, at, join
from nexttok.plans import Plan
from nexttok.steps import At, Step, parts
from nexttok.tokens import Tokens, TokenSpec

LAYOUTS = ("interleaved", "separate")


@dataclasses.dataclass(frozen=True)
class Query:
    """`config.generator.context` of name query.

    Attributes:
      layout: interleaved | separate (the latter needs backbone cross_decoder).
    """

    layout: str
    likelihood = True
    takes_prefix = False

    def __post_init__(self):
        allowed = " | ".join(LAYOUTS)
        check(self.layout in LAYOUTS, "generator.context.layout", self.layout, allowed)

    def needs(self, plan: Plan) -> Needs:
        """A content slot and a query slot per token."""
        return Needs(2 * plan.length, True, True, 0, 0, False)

    def cache_slots(self, plan: Plan, given: int) -> int:
        """Key-value slots of a generation; padding is written beyond the end."""
        largest = max(plan.sizes)
        if self.layout == "separate":
            return plan.length + max(largest, 1 + given)
        return 2 * plan.length + 2 * max(largest, 1 + given) + largest

    def lesson(self, plan: Plan, tokens: Tokens, order: Array, prefix: int, rng: Array) -> Lesson:
        """Teacher forcing; `tokens` are in generation order."""
        del prefix, rng
        ordered, n = tokens.values if tokens.ids is None else tokens.ids, plan.length
        order = order[0] if plan.kind == "fixed" else order
        if self.layout == "separate":
            steps = jnp.asarray(plan.step_of_slot)
            fed = jnp.concatenate([jnp.zeros((1,), jnp.int32), steps[:-1] + 1])
            body = content(jnp.arange(n, dtype=jnp.int32), ordered, order, fed)
            asked = queries(jnp.arange(n, dtype=jnp.int32), ordered, order, steps)
            body = join(body, asked).replace(segments=(n, n))
            return Lesson(body, (0, 1), ordered)
        place = jnp.arange(2 * n, dtype=jnp.int32)
        body = interleaved(place, ordered, order, place)
        return Lesson(body.replace(runs=(1,) * 2 * n), (1, 2), ordered)

    def step(self, plan: Plan, calls: Calls, prefix: int) -> Step:
        """One step of decoding: the tokens of the step before, then the queries of this one."""
        del prefix
        run = self._separate if self.layout == "separate" else self._interleaved
        fixed = plan.kind == "fixed"

        def step(tokens, order, at_: At, cache, key):
            places = order[0] if fixed else order
            hidden, other, cache = run(calls, tokens, places, at_, cache)
            return calls.sample(hidden, other, at_, key)[0], order, cache

        return Step(step, padding="bucket", reads_before=True, parts=parts(plan))

    @staticmethod
    def _separate(calls, tokens, order, at_, cache):
        begin = at_.first + 1 - at_.before
        fed, asked = (jnp.arange(n, dtype=jnp.int32) for n in (at_.size_before, at_.size))
        # the start slot comes before everything, also where given tokens are fed with it
        known = jnp.where(begin + fed == 0, -1, jnp.where(fed < at_.before, at_.index, UNFILLED))
        body = content(begin + fed, tokens, order, known)
        steps = jnp.full((at_.size,), at_.index, jnp.int32)
        body = join(body, queries(at_.first + asked, tokens, order, steps))
        body = body.replace(
            segments=(at_.size_before, at_.size), filled=at_.known + at_.size_before
        )
        return calls.net(body, cache.replace(cursor=jnp.asarray(begin, jnp.int32)))

    @staticmethod
    def _interleaved(calls, tokens, order, at_, cache):
        begin = 2 * (at_.first + 1 - at_.before)
        fed = 2 * at_.before - 1
        slot = jnp.arange(2 * at_.size_before - 1 + at_.size, dtype=jnp.int32)
        # behind the fed slots come this step's queries: 2 i + 1 is the query of token i
        ask = 2 * (at_.first + slot - fed) + 1
        place = jnp.where(slot < fed, begin + slot, ask)
        steps = jnp.where(slot < fed + at_.count, begin + slot, UNFILLED)
        body = interleaved(place, tokens, order, steps)
        body = body.replace(filled=2 * (at_.known + at_.size_before) - 1 + at_.size)
        hidden, other, cache = calls.net(body, cache.replace(cursor=jnp.asarray(begin, jnp.int32)))
        asked = [h if h is None else at(h.swapaxes(1, 2), fed, at_.size) for h in (hidden, other)]
        return *(h if h is None else h.swapaxes(1, 2) for h in asked), cache


def refusal(plan: Plan, spec: TokenSpec) -> str:
    """See contract.py: only the positions of one step are asked for."""
    del spec
    guess = "confidence needs a guess at every position"
    return guess if plan.kind == "confidence" else ""


def content(element: Int[Array, "S"], tokens: Array, order: Array, steps: Array) -> Slots:
    """Slots of elements of [start, token 0, token 1, ...]."""
    held = jnp.maximum(element - 1, 0)
    return Slots(
        content=jnp.take(tokens, held, axis=1, mode="clip"),
        kind=jnp.where(element == 0, START, TOKEN),
        index=element,
        place=jnp.where(element == 0, -1, jnp.take(order, held, axis=-1, mode="clip")),
        steps=steps,
    )


def queries(token: Int[Array, "S"], tokens: Array, order: Array, steps: Array) -> Slots:
    """Slots that ask for tokens of the order; they hold nothing but the position."""
    return Slots(
        content=jnp.zeros_like(jnp.take(tokens, token, axis=1, mode="clip")),
        kind=jnp.full(token.shape, QUERY, jnp.int32),
        index=token,
        place=jnp.take(order, token, axis=-1, mode="clip"),
        steps=steps,
    )


def interleaved(place: Int[Array, "S"], tokens: Array, order: Array, steps: Array) -> Slots:
    """Slots of the sequence [start, query 0, token 0, query 1, token 1, ...]."""
    held = jnp.maximum((place - 1) // 2, 0)
    kind = jnp.where(place == 0, START, jnp.where(place % 2 == 1, QUERY, TOKEN))
    return Slots(
        content=jnp.take(tokens, held, axis=1, mode="clip"),
        kind=kind,
        index=place,
        place=jnp.where(place == 0, -1, jnp.take(order, held, axis=-1, mode="clip")),
        steps=steps,
    )


def make(section) -> Query:
    """The context of a config section."""
    return build(Query, section, "generator.context", named=True)

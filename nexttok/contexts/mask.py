"""Context `mask`: every position has a slot; it holds the token, or [MASK] where it is hidden.

    ?  b  ?  d      attention sees everything; hidden positions are predicted

(MaskGIT, Chang et al., 2022; MAR, Li et al., 2024; GIVT's masked variant, Tschannen et al., 2023.)
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nexttok.config import build, check
from nexttok.contexts.contract import Calls, Lesson, Needs
from nexttok.nn.slots import QUERY, TOKEN, Slots, class_slots, join
from nexttok.plans import Plan
from nexttok.rng import stream
from nexttok.steps import At, Step, random_order
from nexttok.tokens import Tokens, TokenSpec

SCHEDULES = ("cosine", "truncated_normal")
STD = 0.25
PARTS, DIGITS = 16, 3  # how finely steps of a random order are told apart


@dataclasses.dataclass(frozen=True)
class Mask:
    """`config.generator.context` of name mask.

    Attributes:
      schedule: of the share that is hidden in training. cosine: cos(pi u / 2) per example, u
        uniform in [0, 1 - floor]; truncated_normal: N(1, 0.25) on [floor, 1], one draw a batch.
      floor: see schedule.
      per_example: every example weighs the same in the loss (MaskGIT); else every hidden token.
    """

    schedule: str
    floor: float
    per_example: bool
    likelihood = False
    takes_prefix = True

    def __post_init__(self):
        allowed = " | ".join(SCHEDULES)
        check(self.schedule in SCHEDULES, "generator.context.schedule", self.schedule, allowed)
        check(0 <= self.floor < 1, "generator.context.floor", self.floor, "at least 0 and below 1")

    def needs(self, plan: Plan) -> Needs:
        """One slot per token."""
        return Needs(plan.length, False, True, 0, 0, False)

    def cache_slots(self, plan: Plan, given: int) -> int:
        """Nothing is cached: a token that becomes known changes what all others see."""
        del plan, given
        return 0

    def hidden(self, rng: Array, batch: int, tokens: int) -> Bool[Array, "B N"]:
        """Which tokens are hidden in a training batch: ceil(share N) random ones, at least one."""
        key = stream(rng, "ratio")
        if self.schedule == "cosine":
            u = jax.random.uniform(key, (batch, 1), maxval=1.0 - self.floor)
            share = jnp.cos(0.5 * math.pi * u)
        else:
            low = jnp.asarray((self.floor - 1.0) / STD)
            share = 1.0 + STD * jax.random.truncated_normal(key, low, 0.0, (1, 1))
        count = jnp.clip(jnp.ceil(share * tokens), 1, tokens)
        rank = jnp.argsort(random_order(stream(rng, "mask"), batch, tokens), axis=1)
        return rank.astype(jnp.float32) < count

    def most_visible(self, tokens: int) -> int:
        """How many tokens of a training example can be visible."""
        if self.schedule == "truncated_normal":
            return tokens - max(1, math.ceil(tokens * self.floor - 1e-6))
        return tokens - 1

    def lesson(self, plan: Plan, tokens: Tokens, order: Array, prefix: int, rng: Array) -> Lesson:
        """Hides tokens at random; only they weigh. `tokens` are by index."""
        del order
        given = tokens.values if tokens.ids is None else tokens.ids
        hidden = self.hidden(rng, given.shape[0], plan.length)
        visible = prefix + max(1, self.most_visible(plan.length))
        return self.taught(given, hidden, prefix, visible)

    def taught(self, given: Array, hidden: Bool[Array, "B N"], prefix: int, visible: int) -> Lesson:
        """The lesson of a given mask."""
        weight = hidden.astype(jnp.float32)
        axes = (1,) if self.per_example else (0, 1)
        body = canvas(given, hidden, prefix).replace(visible=visible)
        return Lesson(body, (prefix, 1), given, weight / weight.mean(axes, keepdims=True))

    def step(self, plan: Plan, calls: Calls, prefix: int) -> Step:
        """One step: all positions are computed, those of the step are kept.

        In a random order the step's tokens are chosen before the head draws them, and an encoder
        of the known ones is as long as they are many: steps of similar sizes share a shape.
        """
        n = plan.length

        def whole(tokens, order, at: At, cache, key, count, guide):
            """All positions: the first `count` tokens of the step, the order, the cache. How
            strongly they are guided `guide` tells."""
            rank = jnp.argsort(order, axis=1)
            hidden = rank >= at.first
            shown = _take(tokens[:, :n], rank)
            shown = jnp.where(_like(hidden, shown), jnp.zeros_like(shown), shown)
            known = canvas(shown, hidden, prefix).replace(visible=max(1, prefix + at.known))
            known = known if cache is None else placed(known, len(order))
            if plan.kind == "random":
                chosen = _step_of(order, at)[:, :count]
                *states, cache = calls.net(known.replace(wanted=prefix + chosen), cache)
                return calls.sample(*states, guide, key)[0], order, cache
            *states, cache = calls.net(known, cache)
            states = [h if h is None else h[:, prefix:] for h in states]
            drawn, log_prob = calls.sample(*states, guide, key)
            share = (jnp.asarray(at.index, jnp.float32) + 1.0) / at.steps
            gumbel = jax.random.gumbel(stream(key, "confidence"), log_prob.shape)
            sure = log_prob + calls.confidence * (1.0 - share) * gumbel
            order = surest_first(order, hidden, sure)
            return _take(drawn, _step_of(order, at)[:, :count]), order, cache

        def run(tokens, order, at: At, state, key):
            new, order, _ = whole(tokens, order, at, None, key, at.size, at)
            return new, order, state

        if calls.reuse:
            return Step(self._merged(whole, plan, calls, prefix), parts=n)
        if plan.kind == "random":
            return Step(run, padding="bucket", digits=DIGITS, parts=PARTS)
        return Step(run, padding="all")

    @staticmethod
    def _merged(whole, plan, calls, prefix):
        """Several steps of the plan in one: the first computes all positions, the others those of
        this step alone, against the keys and values that the first has found for the rest (Liu et
        al., "Plug-and-Play Context Feature Reuse for Efficient Masked Generation", 2025)."""
        begin = np.cumsum([0, *map(len, calls.reuse)])
        front = prefix if prefix == 1 else 0  # a class slot alone is computed again

        def run(tokens, order, at: At, state, key):
            parts, batch = calls.reuse[at.index], len(order)
            cache = calls.empty(batch, prefix + plan.length) if len(parts) > 1 else None
            # all are guided as the first of them, at its place among the steps that were merged
            first = int(begin[at.index])
            guide = at.replace(index=first, count=parts[0], steps=int(begin[-1]))
            new, order, cache = whole(tokens, order, at, cache, key, parts[0], guide)
            chosen = _step_of(order, at)
            for part, count in enumerate(parts[1:], 1):
                local = chosen_slots(new, chosen, prefix, front)
                wanted = front + new.shape[1] + jnp.arange(count, dtype=jnp.int32)[None]
                local = local.replace(wanted=jnp.broadcast_to(wanted, (batch, count)))
                *states, cache = calls.net(local, cache)
                drawn = calls.sample(*states, guide, stream(key, "part", part))[0]
                new = jnp.concatenate([new, drawn], axis=1)
            return new, order, state

        return run


def refusal(plan: Plan, spec: TokenSpec) -> str:
    """See contract.py: the order must be free."""
    del spec
    return "the plan's order is fixed" if plan.kind == "fixed" else ""


def canvas(given: Array, hidden: Bool[Array, "B N"], prefix: int) -> Slots:
    """Slots of all positions, behind the class prefix; everything sees everything."""
    n = hidden.shape[1]
    body = Slots(
        content=given,
        kind=jnp.where(hidden, QUERY, TOKEN),
        index=prefix + jnp.arange(n, dtype=jnp.int32),
        place=jnp.arange(n, dtype=jnp.int32),
        steps=jnp.zeros((n,), jnp.int32),
        runs=(n,),
    )
    if not prefix:
        return body
    front = class_slots(given, prefix).replace(steps=jnp.zeros((prefix,), jnp.int32))
    return join(front, body).replace(runs=(prefix + n,))


def chosen_slots(new: Array, chosen: Int[Array, "B M"], prefix: int, front: int) -> Slots:
    """Slots of the M positions `chosen`, of which the first hold the tokens `new` and the others
    are hidden, behind `front` class slots; they stand where a canvas put them."""
    batch, m = chosen.shape
    known = new.shape[1]
    room = jnp.zeros((batch, m - known, *new.shape[2:]), new.dtype)
    body = Slots(
        content=jnp.concatenate([new, room], axis=1),
        kind=jnp.where(jnp.arange(m) < known, TOKEN, QUERY),
        index=prefix + chosen,
        place=chosen,
        steps=jnp.zeros((m,), jnp.int32),
    )
    if front:
        body = join(class_slots(new, front).replace(steps=jnp.zeros((front,), jnp.int32)), body)
    return placed(body.replace(visible=max(1, front + known)), batch)


def placed(slots: Slots, batch: int) -> Slots:
    """The slots, each of which stands in a cache at its own index."""

    def rows(x):
        return x if x.ndim == 2 else jnp.broadcast_to(x[None], (batch, len(x)))

    return slots.replace(written=rows(slots.index), steps=rows(slots.steps))


def surest_first(
    order: Int[Array, "B N"], hidden: Bool[Array, "B N"], sure: Float[Array, "B N"]
) -> Int[Array, "B N"]:
    """Known tokens keep their places in the order; hidden ones follow, the surest first."""
    rank = jnp.argsort(order, axis=1).astype(jnp.float32)
    within = jnp.where(hidden, -sure, rank)
    return jnp.lexsort((within, hidden.astype(jnp.int32)), axis=-1).astype(jnp.int32)


def _step_of(order, at):
    """The positions [B, at.size] that a step predicts; what is beyond the end is padding."""
    room = jnp.pad(order, ((0, 0), (0, at.size)))
    return jax.lax.dynamic_slice_in_dim(room, at.first, at.size, axis=1)


def _take(x, index):
    return jnp.take_along_axis(x, index if x.ndim == 2 else index[..., None], axis=1)


def _like(mask, x):
    return mask if x.ndim == 2 else mask[..., None]


def make(section) -> Mask:
    """The context of a config section."""
    return build(Mask, section, "generator.context", named=True)

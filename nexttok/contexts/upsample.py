"""Context `upsample`: a slot holds what the coarser steps decode to, resampled to its own step.

    step 0    start                 1 x 1
    step 1    f(1 x 1) at 2 x 2     4 slots, each at its own place: nothing is shifted
    step 2    f(1 x 1, 2 x 2) at 3 x 3 ...

The tokenizer computes f: `Tokens.values` hold it for teacher forcing, `Calls.advance` step by step.
(VAR, Tian et al., 2024.)
"""

import dataclasses
import itertools

import jax.numpy as jnp
from jaxtyping import Array

from nexttok.config import build
from nexttok.contexts.contract import Calls, Lesson, Needs
from nexttok.nn.slots import START, TOKEN, Slots
from nexttok.plans import Plan
from nexttok.steps import At, Step
from nexttok.tokens import Tokens, TokenSpec


@dataclasses.dataclass(frozen=True)
class Upsample:
    """`config.generator.context` of name upsample."""

    likelihood = True
    takes_prefix = False

    def needs(self, plan: Plan) -> Needs:
        """One slot per token, a level embedding per scale."""
        return Needs(plan.length, True, False, 0, plan.calls, False)

    def cache_slots(self, plan: Plan, given: int) -> int:
        """Key-value slots of a generation."""
        del given
        return plan.length

    def lesson(self, plan: Plan, tokens: Tokens, order: Array, prefix: int, rng: Array) -> Lesson:
        """Teacher forcing; values [B, N, C] hold the inputs, ids [B, N] the targets."""
        del order, prefix, rng
        body = slots(plan, tokens.values, 0, plan.length)
        return Lesson(body.replace(runs=plan.sizes), (0, 1), tokens.ids)

    def step(self, plan: Plan, calls: Calls, prefix: int) -> Step:
        """One scale; the state is (cache, coarse state of the tokenizer, inputs of the scale)."""
        del prefix

        def run(tokens, order, at: At, state, key):
            del tokens
            cache, coarse, values = state
            new = slots(plan, values, at.first, at.size).replace(filled=at.known + at.size)
            hidden, other, cache = calls.net(new, cache)
            ids = calls.sample(hidden, other, at, key)[0]
            if at.index + 1 < plan.calls:
                coarse, values = calls.advance(coarse, ids, at.index)
            return ids, order, (cache, coarse, values)

        return Step(run)


def refusal(plan: Plan, spec: TokenSpec) -> str:
    """See contract.py: ids in a pyramid of scales, the first of one token."""
    if not spec.vocab:
        return "these tokens are continuous"
    growing = all(a < b for a, b in itertools.pairwise(plan.sizes))
    fits = plan.kind == "fixed" and plan.sizes[0] == 1 and growing and plan.calls > 1
    return "" if fits else "the plan has no scales that grow from one token"


def slots(plan: Plan, values: Array, first: int, size: int) -> Slots:
    """Slots first .. first + size - 1, which hold `values` [B, size, C]."""
    index = first + jnp.arange(size, dtype=jnp.int32)
    return Slots(
        content=values,
        kind=jnp.where(index == 0, START, TOKEN),
        index=index,
        place=index,
        steps=jnp.asarray(plan.step_of_slot[first : first + size]),
    )


def make(section) -> Upsample:
    """The context of a config section."""
    return build(Upsample, section, "generator.context", named=True)

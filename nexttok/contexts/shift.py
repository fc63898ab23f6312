"""Context `shift`: the slot that predicts a token holds the token before it in the order.

    order     a   b   c   d
    input   start a   b   c        step of slot i is i: attention is causal

(LlamaGen, FlexTok AR, D-AR, CM3, GIVT.)
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from nexttok.config import build
from nexttok.contexts import aligned
from nexttok.contexts.contract import Calls, Lesson, Needs
from nexttok.nn.slots import START, TOKEN, Slots
from nexttok.plans import Plan
from nexttok.steps import Step
from nexttok.tokens import Tokens, TokenSpec


@dataclasses.dataclass(frozen=True)
class Shift:
    """`config.generator.context` of name shift."""

    likelihood = True
    takes_prefix = True
    continues = True  # it can go on from given steps

    def needs(self, plan: Plan) -> Needs:
        """One slot per token, but none for a first step that is given."""
        return Needs(plan.length - aligned.skipped(plan), not plan.given, False, 0, 0, False)

    def cache_slots(self, plan: Plan, given: int) -> int:
        """Key-value slots of a generation, without the class prefix."""
        del given
        return plan.length - aligned.skipped(plan)

    def source(self, plan: Plan) -> Int[np.ndarray, "N"]:
        """start, token 0, token 1, ..."""
        return np.arange(-1, plan.length - 1)

    def lesson(self, plan: Plan, tokens: Tokens, order: Array, prefix: int, rng: Array) -> Lesson:
        """Teacher forcing; `tokens` are in generation order."""
        del rng
        ordered = tokens.values if tokens.ids is None else tokens.ids
        return aligned.lesson(self.source(plan), plan, ordered, order, prefix)

    def step(self, plan: Plan, calls: Calls, prefix: int) -> Step:
        """One step of decoding."""
        return aligned.step(self.source(plan), plan, calls, prefix)

    @staticmethod
    def window(plan: Plan, tokens: Int[Array, "B S"], at: Int[Array, "B S"], prefix: int) -> Slots:
        """The slots that predict tokens `at` of the order, each of which holds the token before.

        Those beyond the end predict nothing.
        """
        inside = jnp.minimum(at, plan.length - 1)
        order = jnp.asarray(plan.order, jnp.int32)
        return Slots(
            content=tokens,
            kind=jnp.where(at == 0, START, TOKEN),
            index=prefix + inside,
            place=jnp.where(inside == 0, -1, order[jnp.maximum(inside - 1, 0)]),
            steps=at,
        )


def refusal(plan: Plan, spec: TokenSpec) -> str:
    """See contract.py: steps of one token, in an order that is known beforehand."""
    del spec
    if plan.kind == "confidence":
        return "the order depends on confidence"
    several = f"the plan predicts several tokens in one step (sizes {plan.sizes[:8]} ...)"
    return several if max(plan.sizes) > 1 else ""


def make(section) -> Shift:
    """The context of a config section."""
    return build(Shift, section, "generator.context", named=True)

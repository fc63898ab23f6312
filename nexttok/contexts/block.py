"""Context `block`: a slot holds the corresponding token of the step before.

    order      a   b | c   d | e   f          steps of equal size
    input     s   m1 | a   b | c   d          attention is block-causal

The first step has no step before: its slots hold the start vector and fillers m1, m2, ... After a
lead of single tokens the fillers come in once more, [b, m1] -> [c, d] (the hybrid of NBP). A first
step that is given has no slots at all (the pure NBP, which continues a video). With blocks of one
token this is `shift`. (Ren et al., "Next Block Prediction: Video Generation via
Semi-Autoregressive Modeling", 2025.)
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Int

from nexttok.config import build
from nexttok.contexts.aligned import START_SOURCE
from nexttok.contexts.contract import Needs
from nexttok.contexts.shift import Shift
from nexttok.plans import Plan
from nexttok.tokens import TokenSpec


@dataclasses.dataclass(frozen=True)
class Block(Shift):
    """`config.generator.context` of name block."""

    def needs(self, plan: Plan) -> Needs:
        """As shift, and a filler for every place of a block but the first, unless it is given."""
        fillers = 0 if plan.given else max(plan.sizes) - 1
        return dataclasses.replace(super().needs(plan), fillers=fillers)

    def source(self, plan: Plan) -> Int[np.ndarray, "N"]:
        """Token j of the step before, filler j where there is none, start at the very first."""
        out, first, before = [], 0, 0
        for size in plan.sizes:
            for j in range(size):
                # filler j - 1, as the first place always has a token or the start vector
                held = first - before + j if j < before else -1 - j
                out.append(START_SOURCE if first == 0 and j == 0 else held)
            first, before = first + size, size
        return np.asarray(out)


def refusal(plan: Plan, spec: TokenSpec) -> str:
    """See contract.py: a fixed order, in steps of equal size after single tokens if any."""
    del spec
    if plan.kind != "fixed":
        return "the plan's order is not fixed"
    fits = all(b == a or a == 1 for a, b in itertools.pairwise(plan.sizes))
    return "" if fits else f"step sizes differ (sizes {plan.sizes[:8]} ...)"


def make(section) -> Block:
    """The context of a config section."""
    return build(Block, section, "generator.context", named=True)

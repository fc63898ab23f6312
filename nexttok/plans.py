"""Plans: which tokens are predicted together, and in which order.

A plan is an order of the token indices and a list of step sizes; attention masks, network calls
and the decode loop all follow from it. Plans are host-side and static under jit.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Int

from nexttok.config import check


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Tokens in order of generation, cut into steps.

    Attributes:
      order: int32 [N], a permutation; the first sizes[0] of them are predicted in step 0, ...
      sizes: tokens per step; they sum to N.
    """

    order: Int[np.ndarray, "N"]
    sizes: tuple[int, ...]

    def __post_init__(self):
        n = len(self.order)
        whole = np.array_equal(np.sort(self.order), np.arange(n))
        check(
            whole, "generator.plan", self.order, f"an order that is a permutation of 0 .. {n - 1}"
        )
        fits = sum(self.sizes) == n and all(s >= 1 for s in self.sizes)
        check(fits, "generator.plan", self.sizes, f"positive step sizes that sum to {n} tokens")

    @property
    def length(self) -> int:
        """Number of tokens N."""
        return len(self.order)

    @property
    def calls(self) -> int:
        """Number of network calls of a generation: one per step."""
        return len(self.sizes)

    @property
    def step_of_slot(self) -> Int[np.ndarray, "N"]:
        """Step that predicts the i-th token of the order."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes).astype(np.int32)

    @property
    def step_of_token(self) -> Int[np.ndarray, "N"]:
        """Step that predicts token index t."""
        steps = np.empty_like(self.step_of_slot)
        steps[self.order] = self.step_of_slot
        return steps

    def prefix(self, tokens: int) -> "Plan":
        """The plan of the first `tokens` tokens of the order, cutting the last step if need be.

        Raises:
          ConfigError: unless 1 <= tokens <= N, or the kept order is not a prefix of the indices.
        """
        check(1 <= tokens <= self.length, "sample.tokens", tokens, f"1 .. {self.length}")
        ends = np.minimum(np.cumsum(self.sizes), tokens)
        sizes = np.diff(ends, prepend=0)
        return Plan(self.order[:tokens], tuple(int(s) for s in sizes if s))

    def runs(self) -> list[tuple[int, int, int]]:
        """Consecutive equal steps as (first token, size, count); each run is one lax.scan."""
        runs: list[tuple[int, int, int]] = []
        start = 0
        for size in self.sizes:
            if runs and runs[-1][1] == size:
                first, _, count = runs[-1]
                runs[-1] = (first, size, count + 1)
            else:
                runs.append((start, size, 1))
            start += size
        return runs


def raster(grid: tuple[int, ...]) -> Plan:
    """One token a step, row-major; for 1D tokens, from the first to the last.

    0 1 2
    3 4 5
    """
    count = math.prod(grid)
    return Plan(np.arange(count, dtype=np.int32), (1,) * count)


def make(name: str, grid: tuple[int, ...]) -> Plan:
    """The plan called `name` of this module, for a token grid.

    Raises:
      ConfigError: no such plan.
    """
    plans = {"raster": raster}
    check(name in plans, "generator.plan", name, " | ".join(plans))
    return plans[name](grid)

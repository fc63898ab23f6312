"""How a head draws; the sampling options that it reads are named by its `reads`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Draw:
    """Sampling options.

    Attributes:
      warp: logits -> logits: temperature and truncation of discrete tokens.
      temperature: of continuous tokens: what noise or standard deviations are multiplied by.
      solver_steps: of a diffusion or flow head, for every step of a generation; () for its own.
      index: the step of the generation, which may be traced.
      certainty: of discrete tokens, by which plans by confidence choose (heads/categorical.py).
      mix: of discrete tokens, logits of a conditional and an unconditional prediction -> logits, in
        place of guidance; None for guidance.
    """

    warp: Callable[[Array], Array]
    temperature: float
    solver_steps: tuple[int, ...] = ()
    index: Any = 0
    certainty: str = ""
    mix: Callable[[Array, Array], Array] | None = None

    def at(self, index: Any) -> "Draw":
        """The options at a step of the generation."""
        return dataclasses.replace(self, index=index) if self.solver_steps else self

    def tables(self, steps: int, make: Callable[[int], dict]) -> tuple[dict, Any]:
        """Constants of the solver at this step of the generation, and its number of steps, which is
        traced where it differs from step to step.

        Args:
          steps: the head's own.
          make: number of steps -> constants by name, as long as that number says.
        """
        counts = self.solver_steps or (steps,)
        if len(set(counts)) == 1:
            return {name: jnp.asarray(v) for name, v in make(counts[0]).items()}, counts[0]
        rows = [make(count) for count in counts]

        def picked(name):
            most = max(len(row[name]) for row in rows)
            padded = np.stack([np.pad(row[name], (0, most - len(row[name]))) for row in rows])
            return jnp.take(jnp.asarray(padded), self.index, axis=0)

        return {name: picked(name) for name in rows[0]}, jnp.asarray(counts)[self.index]

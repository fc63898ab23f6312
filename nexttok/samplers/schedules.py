"""How strongly each step of a generation is guided."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import check
from nexttok.plans import Plan
from nexttok.steps import At

SHAPES = ("constant", "linear", "cosine", "power")
CLOCKS = ("step", "before", "after", "masked")


@dataclasses.dataclass(frozen=True)
class Guidance:
    """`config.sample.guidance...`: u + s (c - u), where s grows from `start` to `end`.

    Attributes:
      end: last scale; start: first scale.
      shape: constant (`end` throughout), linear, cosine ((1 - cos(pi x^power)) / 2) or power.
      power: exponent of the last two.
      clock: x = k / (K - 1) over the K steps that run ("step": VAR, xAR); known / N before the
        step ("before": RandAR) or after it ("after": ARPG; "masked": MAR, which never counts the
        last token).
      contrast: above 0: not by a scale, but by contrast (samplers/control.py); the scale is then 1.
    """

    end: float
    start: float
    shape: str
    power: float
    clock: str
    contrast: float = 0.0

    def __post_init__(self):
        check(self.shape in SHAPES, "sample.guidance_shape", self.shape, " | ".join(SHAPES))
        check(self.clock in CLOCKS, "sample.guidance_clock", self.clock, " | ".join(CLOCKS))
        check(self.power > 0, "sample.guidance_power", self.power, "above 0")
        check(0 <= self.contrast <= 1, "sample.contrast", self.contrast, "0 .. 1 (0 for guidance)")
        both = self.contrast > 0 and not self._one
        check(not both, "sample.guidance", self.end, "1, as sample.contrast takes its place")

    @property
    def _one(self):
        """The scale is 1 throughout."""
        return self.end == 1.0 and (self.shape == "constant" or self.start == 1.0)

    @property
    def off(self) -> bool:
        """No unconditional call is needed at all."""
        return self._one and self.contrast == 0

    def scale(self, at: At, plan: Plan) -> Float[Array, ""]:
        """The scale of one step."""
        if self.shape == "constant":
            return jnp.asarray(self.end, jnp.float32)
        done, total = at.first, plan.length
        if self.clock == "step":
            done, total = at.index, max(at.steps - 1, 1)
        elif self.clock != "before":
            done = at.first + at.count
        x = jnp.asarray(done, jnp.float32)
        x = (jnp.minimum(x, total - 1) if self.clock == "masked" else x) / total
        if self.shape != "linear":
            x = x**self.power
        if self.shape == "cosine":
            x = 0.5 * (1.0 - jnp.cos(jnp.pi * x))
        return self.start + (self.end - self.start) * x

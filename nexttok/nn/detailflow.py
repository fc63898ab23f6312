"""What the registers of DetailFlow's encoder start as (Liu et al., "DetailFlow: 1D Coarse-to-Fine
Autoregressive Image Generation via Next-Detail Prediction", 2025)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.nn.linear import INITS, Linear


class Registers(nn.Module):
    """K learned vectors; or the first tokens, given, and other learned vectors after them.

    Attributes:
      count: K; width: of a vector.
      dtype: compute dtype.
    """

    count: int
    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, values: Float[Array, "B K c"] | None = None, given: Int[Array, ""] | int = 0
    ) -> Float[Array, "#B K D"]:
        """The vectors, with their positions; the first `given` are projections of `values`."""

        def learned(name):
            return self.param(name, INITS["normal02"], (self.count, self.width))[None]

        first = learned("registers")
        if values is not None:
            own = Linear(self.width, dtype=self.dtype, name="from_latents")(values)
            known = jnp.arange(self.count)[None, :, None] < given
            first = jnp.where(known, own.astype(first.dtype), learned("refined_registers"))
        return first + learned("latent_positions")

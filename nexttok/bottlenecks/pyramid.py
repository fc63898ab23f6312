"""Continuous latents as a pyramid of maps, coarse to fine: the scales of next-X prediction (Ren et
al., "Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation" (xAR), 2025).

Map k is the latent of a KL bottleneck averaged over areas to side k; the last is the latent itself.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.bottlenecks import kl, multiscale
from nexttok.config import build
from nexttok.tokens import Tokens, TokenSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pyramid(kl.KL):
    """A KL bottleneck, see there, whose latents are square.

    Attributes:
      sides: of the maps, growing up to the latent's side.
    """

    sides: tuple[int, ...]

    def spec(self, grid: tuple[int, ...]) -> TokenSpec:
        """All maps in one row; a prefix decodes as far as its last whole map."""
        multiscale.square(grid, self.where)
        multiscale.check_sides(self.sides, grid[0], self.where)
        return TokenSpec((multiscale.ends(self.sides)[-1],), 0, self.channels, True, self.sides)

    def encode(self, params: dict, z: Array, rng: Array | None = None) -> Tokens:
        """Values [B, N, c], coarse to fine and row-major inside a map; see KL.encode."""
        full = super().encode(params, z, rng).values.reshape(*z.shape[:-1], self.channels)
        maps = [multiscale.shrink(full, side) for side in self.sides]
        parts = [m.reshape(len(z), -1, self.channels) for m in maps]
        return Tokens(values=jnp.concatenate(parts, 1))

    def decode(
        self,
        params: dict,
        tokens: Tokens,
        grid: tuple[int, ...],
        keep: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B h w C"]:
        """The last whole map among values [B, M <= N], enlarged to the latent's side.

        Without a whole map, or one within the first `keep` tokens, the latent is zero.
        """
        del params
        values, full = tokens.values, self.sides[-1]
        z = jnp.zeros((len(values), *grid, self.channels))
        maps = multiscale.split(values, self.sides)
        for part, side, end in zip(maps, self.sides, multiscale.ends(self.sides), strict=False):
            found = part.reshape(len(values), side, side, -1)
            if side != full:
                found = multiscale.resample(found, multiscale.bicubic(full, side))
            z = found if keep is None else jnp.where((keep >= end)[:, None, None, None], found, z)
        return z / self.scaling_factor


def make(section, where: str) -> Pyramid:
    """From a config section; raises ConfigError for wrong keys or values."""
    return build(Pyramid, section, where, named=True)

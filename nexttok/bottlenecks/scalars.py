"""Latent quantization (QLAE: Hsu et al., "Disentanglement via Latent Quantization", 2023).

Every latent dimension takes one of a few learned numbers of its own; strong weight decay of the
networks (config.train.tokenizer.weight_decay) makes the model reuse a number for one meaning.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.bottlenecks.contract import Coded, Codes
from nexttok.config import build
from nexttok.tokens import TokenSpec


def nearest(z: Float[Array, "*n d"], numbers: Float[Array, "d v"]) -> Int[Array, "*n d"]:
    """Index of the nearest number of each dimension; the first wins ties."""
    flat = z.reshape(-1, z.shape[-1], 1)
    return jnp.abs(flat - numbers[None]).argmin(-1).astype(jnp.int32).reshape(z.shape)


@dataclasses.dataclass(frozen=True)
class Scalars(Codes):
    """A position holds one id per channel; parameters {numbers [channels, size]}.

    Attributes:
      channels: latent dimensions of a position.
      size: numbers of each; they start evenly in [-1/2, 1/2].
      codebook_weight, commitment_weight: of mean|sg z - v|^2 and mean|z - sg v|^2.
    """

    channels: int
    size: int
    codebook_weight: float
    commitment_weight: float
    where: str

    def __post_init__(self):
        self.check_least(channels=1, size=2, codebook_weight=0, commitment_weight=0)

    def spec(self, grid: tuple[int, ...]) -> TokenSpec:
        """A grid of one id per channel."""
        return TokenSpec(grid, self.size, self.channels, codes=self.channels)

    def init(self, key: Array) -> dict:
        """Parameters; see the class."""
        del key
        row = jnp.linspace(-0.5, 0.5, self.size)
        return {"numbers": jnp.broadcast_to(row[None], (self.channels, self.size))}

    def ids_to_values(self, params: dict, ids: Int[Array, "*n d"]) -> Float[Array, "*n d"]:
        """The numbers."""
        at = ids.reshape(-1, self.channels).T
        return jnp.take_along_axis(params["numbers"], at, axis=1).T.reshape(ids.shape)

    def quantize(self, params: dict, z: Array, rng: Array | None, train: bool = True) -> Coded:
        """See the module; rng is not used."""
        del rng, train
        z, stop = z.astype(jnp.float32), jax.lax.stop_gradient
        ids = nearest(z, params["numbers"])
        values = self.ids_to_values(params, ids)
        losses = {
            "codebook": self.codebook_weight * jnp.square(stop(z) - values).mean(),
            "commitment": self.commitment_weight * jnp.square(z - stop(values)).mean(),
        }
        return Coded(z + stop(values - z), ids, sum(losses.values()), losses, {})


def make(section, where: str) -> Scalars:
    """From a config section; raises ConfigError for wrong keys or values."""
    return build(Scalars, section, where, named=True)

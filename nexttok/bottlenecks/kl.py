"""Diagonal Gaussian posterior (Kingma and Welling, "Auto-Encoding Variational Bayes")."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.bottlenecks.contract import Coded
from nexttok.config import build, check
from nexttok.tokens import Tokens, TokenSpec


def quantize(
    moments: Float[Array, "*n C2"], rng: Array | None
) -> tuple[Float[Array, "*n C"], None, dict]:
    """Samples the posterior whose mean and log variance are the two halves of `moments`.

    Args:
      moments: [..., 2C]; the log variance is clipped to [-30, 20].
      rng: noise key, or None for the mode.

    Returns:
      z [..., C], no codes, {"kl": [B], KL to N(0, 1) in nats, mean over the
      elements of an example}.
    """
    mean, log_var = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    log_var = jnp.clip(log_var, -30.0, 20.0)
    z = mean
    if rng is not None:
        z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(rng, mean.shape)
    kl = 0.5 * (jnp.square(mean) + jnp.exp(log_var) - 1.0 - log_var)
    return z, None, {"kl": kl.mean(tuple(range(1, kl.ndim)))}


@dataclasses.dataclass(frozen=True)
class KL:
    """Continuous tokens. The KL term is a mean over elements: a weight w of a paper that sums is
    w x latent elements / picture elements here.

    Attributes:
      channels: width of a latent; an encoder gives twice as many.
      kl_weight: of the KL term (nats, mean over latent elements).
      scaling_factor: latents are given out multiplied by it.
      sample_posterior: encode with noise when a key is given; False is a plain autoencoder.
    """

    channels: int
    kl_weight: float
    scaling_factor: float
    sample_posterior: bool
    where: str

    def __post_init__(self):
        here = self.where
        check(self.channels >= 1, f"{here}.channels", self.channels, "at least 1")
        check(self.kl_weight >= 0, f"{here}.kl_weight", self.kl_weight, "at least 0")
        check(self.scaling_factor > 0, f"{here}.scaling_factor", self.scaling_factor, "above 0")

    @property
    def inputs(self) -> int:
        """Mean and log variance."""
        return 2 * self.channels

    def spec(self, grid: tuple[int, ...]) -> TokenSpec:
        """A grid of continuous tokens."""
        return TokenSpec(grid, 0, self.channels)

    def init(self, key: Array) -> dict:
        """No parameters."""
        del key
        return {}

    def quantize(self, params: dict, z: Array, rng: Array | None, train: bool = True) -> Coded:
        """See the function."""
        del params, train
        values, _, aux = quantize(z, rng if self.sample_posterior else None)
        return Coded(values, None, self.kl_weight * aux["kl"], {"kl": aux["kl"].mean()}, {})

    def encode(self, params: dict, z: Array, rng: Array | None = None) -> Tokens:
        """Scaled latents [B, N, c]: a posterior sample when rng is given, else the mode."""
        values = self.quantize(params, z, rng).values
        return Tokens(values=values.reshape(len(z), -1, self.channels) * self.scaling_factor)

    def decode(
        self, params: dict, tokens: Tokens, grid: tuple[int, ...], keep: Any = None
    ) -> Array:
        """Latents [B, *grid, c] of values; keep is not used."""
        del params, keep
        return (tokens.values / self.scaling_factor).reshape(-1, *grid, self.channels)


def make(section, where: str) -> KL:
    """From a config section; raises ConfigError for wrong keys or values."""
    return build(KL, section, where, named=True)

"""Codes drawn by the Gumbel-softmax (Jang et al., "Categorical Reparameterization with
Gumbel-Softmax", 2017): the discrete VAE of DALL-E (Ramesh et al., "Zero-Shot Text-to-Image
Generation", 2021) and of SLATE (Singh et al., "Illiterate DALL-E Learns to Compose", 2021).

An encoder gives a logit for every code. In training the decoder takes a mixture of codes whose
weights are a softmax of the logits plus Gumbel noise, ever sharper; later it takes the likeliest.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.bottlenecks.contract import Coded, Codes
from nexttok.bottlenecks.vq import perplexity
from nexttok.config import build


def mixture(
    logits: Float[Array, "*n V"],
    noise: Float[Array, "*n V"],
    temperature: float | Float[Array, ""],
    hard: bool = False,
) -> tuple[Float[Array, "*n V"], Int[Array, "*n"]]:
    """Weights softmax((logits + noise) / temperature), and their largest.

    Of Gumbel noise the largest is a draw from softmax(logits), at any temperature. With `hard` the
    weights are one for it and zero for the others, with the gradient of the softmax.
    """
    drawn = logits + noise
    weights = jax.nn.softmax(drawn / temperature, axis=-1)
    ids = jnp.argmax(drawn, axis=-1).astype(jnp.int32)
    if hard:
        chosen = jax.nn.one_hot(ids, logits.shape[-1], dtype=weights.dtype)
        weights = weights + jax.lax.stop_gradient(chosen - weights)
    return weights, ids


def cooled(step: Float[Array, ""], first: float, last: float, steps: int) -> Float[Array, ""]:
    """Temperature at a step: half a cosine from `first` to `last` in `steps` steps, then `last`."""
    done = jnp.minimum(step / steps, 1.0)
    return last + 0.5 * (first - last) * (1.0 + jnp.cos(jnp.pi * done))


def to_uniform(logits: Float[Array, "*n V"]) -> Float[Array, "*n"]:
    """KL divergence from softmax(logits) to the uniform distribution, nats."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return (jnp.exp(log_p) * log_p).sum(-1) + math.log(logits.shape[-1])


@dataclasses.dataclass(frozen=True)
class Gumbel(Codes):
    """A codebook; parameters {embedding [V, c], seen []}, the latter the steps that were trained.

    Attributes:
      channels: width of a code.
      size: number of codes V, and channels that an encoder gives.
      temperature, final_temperature, anneal: of the mixture: see `cooled`.
      hard: in training, too, the decoder takes one code.
      kl_weight: of the KL term (nats, mean over positions). Where a paper divides the sum by the
        picture's elements, as DALL-E, its weight w is w x positions / elements here.
    """

    channels: int
    size: int
    temperature: float
    final_temperature: float
    anneal: int
    hard: bool
    kl_weight: float
    where: str

    def __post_init__(self):
        self.check_least(channels=1, size=2, anneal=1, kl_weight=0)
        self.check("temperature", self.temperature > 0, "above 0")
        fits = 0 < self.final_temperature <= self.temperature
        self.check("final_temperature", fits, f"above 0, at most {self.temperature}")

    @property
    def inputs(self) -> int:
        """A logit per code."""
        return self.size

    def init(self, key: Array) -> dict:
        """Parameters; see the class."""
        return {
            "embedding": jax.nn.initializers.he_uniform()(key, (self.size, self.channels)),
            "seen": jnp.zeros(()),
        }

    def ids_to_values(self, params: dict, ids: Int[Array, "*n"]) -> Float[Array, "*n c"]:
        """Rows of the codebook."""
        return jnp.take(params["embedding"], ids, axis=0)

    def quantize(self, params: dict, z: Array, rng: Array | None, train: bool = True) -> Coded:
        """See the module. Training draws from rng; ids are then those drawn."""
        z, rows = z.astype(jnp.float32), params["embedding"]
        if train:
            seen = jax.lax.stop_gradient(params["seen"])
            temperature = cooled(seen, self.temperature, self.final_temperature, self.anneal)
            noise = jax.random.gumbel(rng, z.shape)
            weights, ids = mixture(z, noise, temperature, self.hard)
            values = jnp.matmul(weights, rows)
            metrics, moves = {"temperature": temperature}, {"seen": jnp.ones(())}
        else:
            ids = jnp.argmax(z, axis=-1).astype(jnp.int32)
            values, metrics, moves = self.ids_to_values(params, ids), {}, {}
        kl = to_uniform(z).reshape(len(z), -1).mean(-1)
        metrics |= {"kl": kl.mean(), "perplexity": perplexity(ids, self.size)}
        return Coded(values, ids, self.kl_weight * kl, metrics, moves)


def make(section, where: str) -> Gumbel:
    """From a config section; raises ConfigError for wrong keys or values."""
    return build(Gumbel, section, where, named=True)

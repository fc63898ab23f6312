"""Codes matched to latents as whole sets (VQ-WAE: Vuong et al., "Vector Quantized Wasserstein
Auto-Encoder", 2023).

In place of codebook and commitment losses stands the optimal-transport distance between the latents
of a batch and the weighted codes, and a term that keeps the weights even, so that all codes are
used. Transport is entropic (Sinkhorn's algorithm, in logarithms), where the official code solves it
exactly or by potentials; the plan is a constant for gradients, as there.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.bottlenecks import vq
from nexttok.bottlenecks.contract import Coded, Codes
from nexttok.config import build


def plan(
    cost: Float[Array, "M V"], weights: Float[Array, "V"], eps: float, rounds: int
) -> tuple[Float[Array, "M V"], Float[Array, "V"]]:
    """The entropic transport plan between M equal points and V weighted codes.

    Args:
      cost: of each pair.
      weights: of the codes, sum 1.
      eps: strength of the entropy, in units of the mean cost.
      rounds: of scaling; the codes' marginal is exact after each, the points' nearly.

    Returns:
      The plan, sum 1, and the codes' dual potentials, whose mean under the weights is 0: the
      derivative of the distance by the weights.
    """
    log_rows, log_columns = -jnp.log(len(cost)), jnp.log(jnp.maximum(weights, 1e-12))[None]
    scaled = -cost / (eps * jnp.maximum(cost.mean(), 1e-12))

    def scale(columns, _):
        rows = log_rows - jax.nn.logsumexp(scaled + columns[None], axis=1)
        found = log_columns[0] - jax.nn.logsumexp(scaled + rows[:, None], axis=0)
        return found, rows

    columns, rows = jax.lax.scan(scale, jnp.zeros(len(weights)), None, rounds)
    matched = jnp.exp(scaled + rows[-1][:, None] + columns[None])
    potential = columns * eps * cost.mean()
    return matched, potential - (weights * potential).sum()


def distance(
    z: Float[Array, "M C"],
    codebook: Float[Array, "V C"],
    weights: Float[Array, "V"],
    eps: float = 0.05,
    rounds: int = 50,
) -> Float[Array, ""]:
    """Transport cost of squared distances, with gradients for latents, codes and weights."""
    stop = jax.lax.stop_gradient
    cost = (
        jnp.square(z).sum(-1)[:, None]
        + jnp.square(codebook).sum(-1)[None]
        - 2.0 * jnp.matmul(z, codebook.T, precision="highest")
    )
    matched, potential = plan(stop(cost), stop(weights), eps, rounds)
    return (matched * cost).sum() + (potential * (weights - stop(weights))).sum()


@dataclasses.dataclass(frozen=True)
class Transport(Codes):
    """A codebook; parameters {embedding, logits}, the logits those of its weights.

    Attributes:
      channels: width of a code; size: number of codes, drawn from N(0, 1).
      weight: of the transport distance; even_weight: of KL(weights || even ones).
      eps, rounds: see `plan`.
    """

    channels: int
    size: int
    weight: float
    even_weight: float
    eps: float
    rounds: int
    where: str

    def __post_init__(self):
        self.check_least(channels=1, size=2, weight=0, even_weight=0, rounds=1)
        self.check("eps", self.eps > 0, "above 0")

    def init(self, key: Array) -> dict:
        """Parameters; see the class."""
        rows = jax.random.normal(key, (self.size, self.channels))
        return {"embedding": rows, "logits": jnp.zeros(self.size)}

    def ids_to_values(self, params: dict, ids: Int[Array, "*n"]) -> Float[Array, "*n c"]:
        """Codebook rows."""
        return vq.ids_to_values(ids, params["embedding"])

    def quantize(self, params: dict, z: Array, rng: Array | None, train: bool = True) -> Coded:
        """Nearest code; the losses of the module over all latents of the batch. No rng is used."""
        del rng
        z, rows = z.astype(jnp.float32), params["embedding"]
        values, ids, _ = vq.quantize(z, rows)
        losses = {}
        if train:
            weights = jax.nn.softmax(params["logits"])
            flat = z.reshape(-1, self.channels)
            cost = distance(flat, rows, weights, self.eps, self.rounds)
            uneven = (weights * jnp.log(weights * self.size + 1e-12)).sum()
            losses = {"transport": self.weight * cost, "uneven": self.even_weight * uneven}
        metrics = losses | {"perplexity": vq.perplexity(ids, self.size)}
        return Coded(values, ids, sum(losses.values(), jnp.zeros(())), metrics, {})


def make(section, where: str) -> Transport:
    """From a config section; raises ConfigError for wrong keys or values."""
    return build(Transport, section, where, named=True)

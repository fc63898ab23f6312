"""Slot attention (Locatello et al., "Object-Centric Learning with Slot Attention", 2020), its heads
as in SLATE (Singh et al., "Illiterate DALL-E Learns to Compose", 2021). Computed in float32.

Slots compete for the inputs: the attention of an input is a softmax over slots. A slot then takes
the mean of its inputs, by their shares, and updates itself, several times over.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import check
from nexttok.nn.linear import Linear
from nexttok.nn.norms import Norm

EPSILON = 1e-8  # of the shares, so that a slot without inputs has a mean


@dataclasses.dataclass(frozen=True)
class SlotConfig:
    """Sizes.

    Attributes:
      count: slots K.
      width: of a slot.
      heads: of the attention; they compete as slots do.
      iterations: updates.
      mlp_hidden: of the update's residual MLP.
    """

    count: int
    width: int
    heads: int
    iterations: int
    mlp_hidden: int
    where: str = "tokenizer.slots"

    def __post_init__(self):
        for field in ("count", "width", "heads", "iterations", "mlp_hidden"):
            value = getattr(self, field)
            check(value >= 1, f"{self.where}.{field}", value, "at least 1")
        fits = self.width % self.heads == 0
        check(fits, f"{self.where}.heads", self.heads, f"a divisor of the width {self.width}")


def shares(
    queries: Float[Array, "B K H d"], keys: Float[Array, "B N H d"]
) -> Float[Array, "B H N K"]:
    """How much of every input each head of each slot takes; over heads and slots they sum to 1."""
    scores = jnp.einsum("bkhd,bnhd->bnhk", queries, keys) / math.sqrt(keys.shape[-1])
    flat = jax.nn.softmax(scores.reshape(*scores.shape[:2], -1), axis=-1)
    return flat.reshape(scores.shape).swapaxes(1, 2)


def uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Of variance 1 / width: the initializer of the slots' Gaussian."""
    bound = math.sqrt(3.0 / shape[-1])
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


class GRUCell(nn.Module):
    """Gated recurrent unit (Cho et al., 2014), biases on inputs and state as in PyTorch."""

    @nn.compact
    def __call__(self, state: Float[Array, "*n D"], x: Float[Array, "*n D"]) -> Array:
        width = state.shape[-1]
        init = nn.initializers.orthogonal()
        given = jnp.split(Linear(3 * width, name="gru_input")(x), 3, axis=-1)
        held = jnp.split(Linear(3 * width, init=init, name="gru_state")(state), 3, axis=-1)
        reset, keep = (jax.nn.sigmoid(given[i] + held[i]) for i in range(2))
        return (1.0 - keep) * jnp.tanh(given[2] + reset * held[2]) + keep * state


class Mlp(nn.Module):
    """fc2(relu(fc1 x))."""

    hidden: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N E"]:
        h = Linear(self.hidden, init=nn.initializers.he_uniform(), name="fc1")(x)
        return Linear(self.features, name="fc2")(jax.nn.relu(h))


class Update(nn.Module):
    """One round: slots take from the inputs and change."""

    config: SlotConfig

    @nn.compact
    def __call__(
        self,
        slots: Float[Array, "B K D"],
        keys: Float[Array, "B N H d"],
        values: Float[Array, "B N H d"],
    ) -> tuple[Float[Array, "B K D"], Float[Array, "B N K"]]:
        c = self.config
        query = Linear(c.width, False, name="wq")(Norm("layer", True, name="norm1")(slots))
        attention = shares(query.reshape(*query.shape[:2], c.heads, -1), keys)
        parts = attention + EPSILON
        parts = parts / parts.sum(2, keepdims=True)
        taken = jnp.einsum("bhnk,bnhd->bkhd", parts, values).reshape(slots.shape)
        slots = GRUCell(name="memory")(slots, taken)
        change = Mlp(c.mlp_hidden, c.width, name="mlp")(Norm("layer", True, name="norm2")(slots))
        return slots + change, attention.sum(1)


class SlotEncoder(nn.Module):
    """Inputs -> slots, and the share of every input that each slot took in the last round."""

    config: SlotConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N E"], noise: Float[Array, "B K D"]
    ) -> tuple[Float[Array, "B K D"], Float[Array, "B N K"]]:
        """Slots start as draws from one learned Gaussian, of which `noise` is the standard one."""
        c, width = self.config, x.shape[-1]
        x = Mlp(width, width, name="mlp")(
            Norm("layer", True, name="norm_in")(x.astype(jnp.float32))
        )
        x = Norm("layer", True, name="norm")(x)
        heads = (*x.shape[:2], c.heads, c.width // c.heads)
        keys = Linear(c.width, False, name="wk")(x).reshape(heads)
        values = Linear(c.width, False, name="wv")(x).reshape(heads)
        mean, log_scale = (
            self.param(name, uniform, (c.width,)) for name in ("slot_mean", "slot_log_scale")
        )
        slots = mean[None, None] + jnp.exp(log_scale)[None, None] * noise
        update = Update(c, name="update")
        for _ in range(c.iterations):
            slots, attention = update(slots, keys, values)
        return slots, attention

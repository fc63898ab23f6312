"""Tokens of bits, without a search among codes.

  lfq        signs, kept apart and in use by an entropy loss (Yu et al., "Language Model Beats
             Diffusion: Tokenizer is Key to Visual Generation", 2023)
  bsq        signs of unit vectors, so of length 1 / sqrt(d) each (Zhao et al., "Image and Video
             Tokenization with Binary Spherical Quantization", 2024)
  bernoulli  bits drawn in training, thresholded otherwise, and then a linear layer (Hao et al.,
             "BiGR: Harnessing Binary Latent Codes for Image Generation", 2024)

The id of d bits is their number, the first bit highest. More than 30 bits do not fit an int32:
they stay d ids of two values each.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nexttok.bottlenecks import vq
from nexttok.bottlenecks.contract import Coded, Codes
from nexttok.config import build
from nexttok.tokens import TokenSpec

KINDS, PACKED = ("lfq", "bsq", "bernoulli"), 30
SHARPNESS = 100.0  # inverse temperature of the soft bits


def pack(bits: Int[Array, "*n d"]) -> Int[Array, "*n"]:
    """The number that bits are, the first bit highest; d is at most 30."""
    powers = jnp.asarray(2 ** np.arange(bits.shape[-1])[::-1], jnp.int32)
    return (bits.astype(jnp.int32) * powers.reshape((1,) * (bits.ndim - 1) + (-1,))).sum(-1)


def unpack(ids: Int[Array, "*n"], count: int) -> Int[Array, "*n d"]:
    """Inverse of pack."""
    shifts = jnp.arange(count - 1, -1, -1, dtype=jnp.int32).reshape((1,) * ids.ndim + (-1,))
    return (ids[..., None] >> shifts) & 1


def signs(z: Float[Array, "*n d"], scale: float) -> Float[Array, "*n d"]:
    """+scale above zero, -scale else, with the gradient of z."""
    return z + jax.lax.stop_gradient(jnp.where(z > 0, scale, -scale) - z)


def _binary_entropy(logits):
    """Entropy of bits of these logits, in nats."""
    p = jax.nn.sigmoid(logits)
    return -(p * jax.nn.log_sigmoid(logits) + (1 - p) * jax.nn.log_sigmoid(-logits))


def entropy(z: Float[Array, "*n d"], scale: float, diversity: float = 1.0) -> Float[Array, ""]:
    """Mean entropy of the soft bits minus `diversity` times that of their mean, in nats.

    A code's soft probability under squared distances is a product over bits, each
    sigmoid(4 SHARPNESS scale z): the sum over bits is the first term exactly, with no table of
    2^d codes. The second is its bound by independent bits, as in BSQ.
    """
    logits = 4 * SHARPNESS * scale * z.reshape(-1, z.shape[-1]).astype(jnp.float32)
    # 1 - mean would be below 0 by rounding where a bit is always set
    on, off = jax.nn.sigmoid(logits).mean(0), jax.nn.sigmoid(-logits).mean(0)
    spread = -(on * jnp.log(on + 1e-8) + off * jnp.log(off + 1e-8))
    return _binary_entropy(logits).sum(-1).mean() - diversity * spread.sum()


@dataclasses.dataclass(frozen=True)
class Binary(Codes):
    """Bits; parameters {project: {kernel [bits, channels]}} under bernoulli, else none.

    Attributes:
      kind: lfq | bsq | bernoulli.
      bits: per position.
      channels: width of what the decoder takes: `bits`, but for bernoulli.
      signed: bernoulli bits are -1 and 1 for the linear layer, not 0 and 1.
      entropy_weight, diversity: of the entropy loss of lfq and bsq.
      beta: weight of the commitment loss of lfq.
    """

    kind: str
    bits: int
    channels: int
    signed: bool
    entropy_weight: float
    diversity: float
    beta: float
    where: str

    def __post_init__(self):
        self.check("kind", self.kind in KINDS, " | ".join(KINDS))
        self.check_least(bits=1, channels=1, entropy_weight=0, beta=0)
        drawn = self.kind == "bernoulli"
        fits = drawn or self.channels == self.bits
        self.check("channels", fits, f"the {self.bits} bits under kind = {self.kind!r}")
        for name in ("entropy_weight", "beta"):
            fits = getattr(self, name) == 0 or not drawn
            self.check(name, fits, "0 under kind = 'bernoulli'")
        self.check("signed", drawn or not self.signed, "False but under kind = 'bernoulli'")

    @property
    def inputs(self) -> int:
        """One channel per bit."""
        return self.bits

    @property
    def packed(self) -> bool:
        """Whether the bits of a position are one id."""
        return self.bits <= PACKED

    @property
    def vocab(self) -> int:
        """Values of an id."""
        return 2**self.bits if self.packed else 2

    def spec(self, grid: tuple[int, ...]) -> TokenSpec:
        """A grid of ids, or of rows of bits."""
        codes = 1 if self.packed else self.bits
        return TokenSpec(grid, self.vocab, self.channels, codes=codes)

    def init(self, key: Array) -> dict:
        """Parameters; see the class."""
        if self.kind != "bernoulli":
            return {}
        bound = self.bits**-0.5
        shape = (self.bits, self.channels)
        return {"project": {"kernel": jax.random.uniform(key, shape, minval=-bound, maxval=bound)}}

    @property
    def scale(self) -> float:
        """Length of a channel's value."""
        return self.bits**-0.5 if self.kind == "bsq" else 1.0

    def _values(self, params, bits):
        """Of bits, float 0 or 1."""
        if self.kind != "bernoulli":
            return self.scale * (2 * bits - 1)
        bits = 2 * bits - 1 if self.signed else bits
        kernel = params["project"]["kernel"]
        rows = bits.reshape(-1, self.bits) @ kernel
        return rows.reshape(*bits.shape[:-1], self.channels)

    def ids_to_values(self, params: dict, ids: Array) -> Array:
        """What the decoder takes for ids."""
        bits = unpack(ids, self.bits) if self.packed else ids
        return self._values(params, bits.astype(jnp.float32))

    def quantize(self, params: dict, z: Array, rng: Array | None, train: bool = True) -> Coded:
        """See the module. Training draws the bits of bernoulli from rng."""
        z, losses = z.astype(jnp.float32), {}
        if self.kind == "bernoulli":
            p, stop = jax.nn.sigmoid(z), jax.lax.stop_gradient
            hard = (p > 0.5).astype(jnp.float32)
            if train:
                hard = jax.random.bernoulli(rng, stop(p)).astype(jnp.float32)
            bits, values = hard, self._values(params, stop(hard) + p - stop(p))
        else:
            z = vq.unit(z) if self.kind == "bsq" else z
            values, bits = signs(z, self.scale), (z > 0).astype(jnp.float32)
            if self.entropy_weight:
                losses["entropy"] = self.entropy_weight * entropy(z, self.scale, self.diversity)
            if self.beta:
                nearest = jax.lax.stop_gradient(values)
                losses["commitment"] = self.beta * jnp.square(z - nearest).mean()
        bits = bits.astype(jnp.int32)
        on = bits.reshape(-1, self.bits).mean(0, dtype=jnp.float32)
        off = (1 - bits).reshape(-1, self.bits).mean(0, dtype=jnp.float32)
        fair = -(on * jnp.log2(on + 1e-8) + off * jnp.log2(off + 1e-8))
        metrics = losses | {"bits_used": fair.sum()}
        ids = pack(bits) if self.packed else bits
        return Coded(values, ids, sum(losses.values(), jnp.zeros(())), metrics, {})


def make(section, where: str) -> Binary:
    """From a config section; raises ConfigError for wrong keys or values."""
    return build(Binary, section, where, named=True)

"""The decoder of TiTok's released weights (Yu et al., "An Image is Worth 32 Tokens for
Reconstruction and Generation", 2024): a transformer names codes of MaskGIT's VQGAN, whose decoder
draws them.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import build, check
from nexttok.nn.linear import INITS, Linear
from nexttok.nn.networks import pooled_conv, vit


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxySizes(vit.ViTSizes):
    """Sizes of the transformer, see ViTSizes, and of the decoder behind it.

    Attributes:
      codes, code_channels: of the VQGAN.
      pixel_width, multipliers, blocks, groups: of its decoder (networks/pooled_conv.py), whose
        stride is the side of a patch.
    """

    codes: int
    code_channels: int
    pixel_width: int
    multipliers: tuple[int, ...]
    blocks: int
    groups: int

    last: ClassVar[tuple[str, ...]] = ("pixels", "conv_out", "kernel")

    def __post_init__(self):
        super().__post_init__()
        stride = (self.pixels.stride,) * 2
        check(self.patch == stride, f"{self.where}.multipliers", self.multipliers,
              f"one per halving of the patch {self.patch}, and one")  # fmt: skip
        check(self.codes >= 2, f"{self.where}.codes", self.codes, "at least 2")
        least = self.code_channels >= 1
        check(least, f"{self.where}.code_channels", self.code_channels, "at least 1")

    @property
    def blocks_to_align(self) -> int:
        """None: what is aligned are pictures of the transformer's own."""
        return 0

    @property
    def pixels(self) -> pooled_conv.PooledConfig:
        """The VQGAN's decoder."""
        return pooled_conv.PooledConfig(
            self.pixel_width, self.multipliers, self.blocks, (), self.groups, self.dtype,
            where=self.where,
        )  # fmt: skip

    def decoder(self, image_shape: tuple[int, ...]) -> "Decoder":
        """Latents -> pictures."""
        return Decoder(self, self.patches(image_shape), image_shape[-1])


class Decoder(vit.Decoder):
    """Latents -> pictures: every patch decodes the mean of the codes that it may be."""

    @nn.compact
    def __call__(self, z: Float[Array, "B *g c"]) -> Float[Array, "B *s C"]:
        s, (h, _) = self.sizes, self.features(z)
        h = jnp.tanh(Linear(2 * s.width, dtype=s.dtype, name="fc1")(h))
        logits = Linear(s.codes, name="logits")(h).astype(jnp.float32)
        rows = self.param("embedding", INITS["normal02"], (s.codes, s.code_channels))
        mean = jax.nn.softmax(logits) @ rows
        mean = mean.reshape(len(z), *self.grid, s.code_channels)
        return pooled_conv.Decoder(s.pixels, self.channels, name="pixels")(mean)


def make(section, dtype: str, where: str) -> ProxySizes:
    """The sizes in a config section; raises ConfigError for wrong ones."""
    return build(ProxySizes, section, where, named=True, dtype=dtype)

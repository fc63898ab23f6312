"""A DINOv2 vision transformer, as the feature provider of alignment losses (Oquab et al., 2023)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nexttok.config import check
from nexttok.nn.attention import Attention
from nexttok.nn.linear import INITS, Linear
from nexttok.nn.norms import Norm
from nexttok.nn.patches import patchify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT/14; `side` is the input resolution, `stored_grid` that of its positions."""

    width: int
    depth: int
    head_dim: int = 64
    patch: int = 14
    side: int = 518
    stored_grid: int = 37
    registers: int = 0


PRESETS = {
    "small": ViTConfig(384, 12),
    "base": ViTConfig(768, 12),
    "base_224": ViTConfig(768, 12, side=224),
    "large": ViTConfig(1024, 24),
    "large_registers": ViTConfig(1024, 24, registers=4),
}


def cubic_matrix(
    target: int, source: int, offset: float = 0.0
) -> Float[np.ndarray, "target source"]:
    """Bicubic interpolation along one axis: a = -0.75, half-pixel centres, clamped, no filter.

    `offset` is added to `target` in the scale alone, so samples lie source / (target + offset)
    apart.
    """

    def weight(x):
        a, x = -0.75, np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    matrix = np.zeros((target, source))
    for i in range(target):
        at = (i + 0.5) * source / (target + offset) - 0.5
        base = int(np.floor(at))
        for j in range(base - 1, base + 3):
            matrix[i, min(max(j, 0), source - 1)] += weight(at - j)
    return matrix.astype(np.float32)


def resize_positions(
    table: Float[Array, "r c D"], grid: tuple[int, int], antialias: bool
) -> Float[Array, "h w D"]:
    """Learned positions on another grid, as the released models do it.

    Models without registers sample at a scale of (grid + 0.1) / stored, unfiltered; those with
    registers use the exact scale and an antialiased filter (a = -0.5).
    """
    if grid == table.shape[:2]:
        return table
    if antialias:
        return jax.image.resize(table, (*grid, table.shape[-1]), "cubic")
    rows, cols = (cubic_matrix(n, m, 0.1) for n, m in zip(grid, table.shape[:2], strict=True))
    return jnp.einsum("hr,wc,rcd->hwd", rows, cols, table)


class ViTBlock(nn.Module):
    """Pre-norm block with LayerScale and exact GELU."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], _=None):
        c = self.config

        def scaled(name, y):
            gamma = self.param(f"{name}/gamma", nn.initializers.ones_init(), (c.width,))
            return y * gamma[None, None]

        h = Norm("layer", True, 1e-6, name="norm1")(x)
        h, _ = Attention(c.width, c.head_dim, bias=True, name="attn")(h)
        x = x + scaled("ls1", h)
        h = Norm("layer", True, 1e-6, name="norm2")(x)
        h = jax.nn.gelu(Linear(4 * c.width, name="fc1")(h), approximate=False)
        return x + scaled("ls2", Linear(c.width, name="fc2")(h)), None


class ViT(nn.Module):
    """Normalized pixels in, patch features after the final norm out."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        c = self.config
        h, w = x.shape[1] // c.patch, x.shape[2] // c.patch
        tokens = Linear(c.width, name="patch_embed")(patchify(x, (c.patch, c.patch)))
        cls = self.param("cls_token", INITS["normal02"], (1, c.width))
        table = self.param("positions", INITS["normal02"], (1 + c.stored_grid**2, c.width))
        grid = jnp.asarray(table)[1:].reshape(c.stored_grid, c.stored_grid, -1)
        grid = resize_positions(grid, (h, w), antialias=c.registers > 0)
        tokens = tokens + grid.reshape(1, h * w, -1)
        first = jnp.broadcast_to((cls + table[:1])[None], (len(x), 1, c.width))
        extra = [first]
        if c.registers:
            registers = self.param("register_tokens", INITS["normal02"], (c.registers, c.width))
            extra.append(jnp.broadcast_to(registers[None], (len(x), *registers.shape)))
        tokens = jnp.concatenate([*extra, tokens], axis=1)
        blocks = nn.scan(
            ViTBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=c.depth
        )
        tokens, _ = blocks(c, name="blocks")(tokens, None)
        tokens = Norm("layer", True, 1e-6, name="norm")(tokens)
        return tokens[:, 1 + c.registers :].reshape(len(x), h, w, c.width)


@dataclasses.dataclass(frozen=True)
class FeatureEncoder:
    """A frozen feature provider: pictures in [-1, 1] to a grid of features.

    Attributes:
      config: the ViT.
    """

    config: ViTConfig

    @property
    def grid(self) -> tuple[int, int]:
        """Features (rows, columns) of every picture, whatever its size."""
        side = self.config.side // self.config.patch
        return (side, side)

    @property
    def channels(self) -> int:
        """Width of a feature."""
        return self.config.width

    def init(self, rng: Array) -> dict:
        """Random parameters."""
        side = self.config.side
        return ViT(self.config).init(rng, jnp.zeros((1, side, side, 3)))["params"]

    def apply(self, params: dict, images: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Features of images, resized to `config.side` and normalized as ImageNet.

        Raises:
          ConfigError: the pictures have neither one channel (it is repeated) nor three.
        """
        check(images.shape[-1] in (1, 3), "data.channels", images.shape[-1], "1 | 3")
        batch, side = len(images), self.config.side
        rgb = jnp.broadcast_to(images, (*images.shape[:3], 3)) * 0.5 + 0.5
        rgb = jax.image.resize(rgb, (batch, side, side, 3), "cubic")
        mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (MEAN, STD))
        return ViT(self.config).apply({"params": params}, (rgb - mean) / std)


def make(preset: str) -> FeatureEncoder:
    """The provider of a preset.

    Raises:
      ConfigError: unknown preset.
    """
    check(preset in PRESETS, "features.preset", preset, " | ".join(PRESETS))
    return FeatureEncoder(PRESETS[preset])

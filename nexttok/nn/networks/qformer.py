"""Convolutions around a transformer that turns their map into a sequence and back (GigaTok: Xiong
et al., "GigaTok: Scaling Visual Tokenizers to 3 Billion Parameters for Autoregressive Image
Generation", 2025).

The encoder's queries are means of the map over ever smaller cells; they attend to each other and to
the map. The decoder's queries all begin as the first latent. Without `tokens` the transformers stay
on the map, and a latent is one of its cells.
"""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.config import build, check
from nexttok.nn.conv import Conv
from nexttok.nn.linear import INITS, Linear
from nexttok.nn.networks import conv, divided
from nexttok.nn.transformer import Transformer, TransformerConfig

QUERIES = ("levels", "learned", "mean")


class Stem(conv.ConvConfig):
    """VQGAN's convolutions without attention, which the decoder restyles with what enters it."""

    middle_attention: ClassVar[bool] = False
    quantized: ClassVar[bool] = False
    restyled: ClassVar[bool] = True
    shuffled: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class QFormerSizes:
    """Sizes of the pair.

    Attributes:
      pixel_width, multipliers, blocks, groups: of the convolutions (networks/conv.py).
      z_channels: of the map between convolutions and transformer.
      width, depth, head_dim: of the transformer.
      tokens: latents of a sequence; 0 for those of the map.
      queries: the encoder's, levels (means over cells, `level_means`) | learned | mean (of the
        whole map); not read without tokens.
    """

    pixel_width: int
    multipliers: tuple[int, ...]
    blocks: int
    groups: int
    z_channels: int
    width: int
    depth: int
    head_dim: int
    tokens: int
    queries: str
    remat: bool
    dtype: str = "float32"
    where: str = "tokenizer.encoder"

    last: ClassVar[tuple[str, ...]] = ("pixels", "conv_out", "kernel")

    def __post_init__(self):
        least = dict(z_channels=1, width=1, depth=1, head_dim=1, tokens=0)
        for name, value in least.items():
            self._check(name, getattr(self, name) >= value, f"at least {value}")
        fits = self.width % self.head_dim == 0
        self._check("head_dim", fits, f"a divisor of the width {self.width}")
        self._check("queries", self.queries in QUERIES, " | ".join(QUERIES))
        power = self.tokens & (self.tokens - 1) == 0
        self._check("tokens", power or self.queries != "levels", "a power of two, for levels")
        self.stem  # noqa: B018, for its checks

    def _check(self, name, condition, allowed):
        check(condition, f"{self.where}.{name}", getattr(self, name), allowed)

    @property
    def stem(self) -> Stem:
        """The convolutions."""
        return Stem(
            self.pixel_width, self.multipliers, self.blocks, (), self.groups, self.dtype,
            self.z_channels, where=self.where,
        )  # fmt: skip

    @property
    def trunk(self) -> TransformerConfig:
        """The transformer: pre-norm, exact GELU, biases everywhere."""
        return TransformerConfig(
            width=self.width, depth=self.depth, head_dim=self.head_dim, mlp_hidden=4 * self.width,
            activation="gelu", norm_affine=True, bias=True, mlp_bias=True, cross=self.tokens > 0,
            init="normal02", remat=self.remat, dtype=self.dtype,
        )  # fmt: skip

    @property
    def blocks_to_align(self) -> int:
        """Blocks of the decoder whose features can be aligned."""
        return self.depth

    def cells(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Cells of the map."""
        return divided(image_shape, (self.stem.stride,) * 2, self.where)

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(tokens,), or the map's cells; see networks/__init__.py."""
        cells = self.cells(image_shape)
        if self.tokens and self.queries == "levels":
            fits = all(h and w for h, w in self.levels(cells))
            self._check("tokens", fits, f"fewer, for a map of {cells} cells in which each level's "
                        "cells divide")  # fmt: skip
        return (self.tokens,) if self.tokens else cells

    def levels(self, cells: tuple[int, int]) -> list[tuple[int, int]]:
        """(rows, columns) of a cell of each level, 0 where it does not divide the map.

        Level after level halves the cells, columns first; the first two are the whole map, so sizes
        1, 1, 2, 4, ... sum to `tokens`.
        """
        halvings = [max(i - 1, 0) for i in range(int(math.log2(self.tokens)) + 1)]
        counts = [(2 ** (n // 2), 2 ** ((n + 1) // 2)) for n in halvings]
        return [
            tuple(side // n if side % n == 0 else 0 for side, n in zip(cells, pair, strict=True))
            for pair in counts
        ]

    def encoder(self, image_shape: tuple[int, ...], channels: int) -> "Encoder":
        """Pictures -> latents."""
        return Encoder(self, self.grid(image_shape), channels)

    def decoder(self, image_shape: tuple[int, ...]) -> "Decoder":
        """Latents -> pictures."""
        return Decoder(self, self.cells(image_shape), image_shape[-1])


def level_means(x: Float[Array, "B h w D"], levels: list[tuple[int, int]]) -> Float[Array, "B N D"]:
    """Means over the cells of each level, row by row; see QFormerSizes.levels."""
    batch, rows, columns, width = x.shape
    means = [
        x.reshape(batch, rows // h, h, columns // w, w, width)
        .mean((2, 4))
        .reshape(batch, -1, width)
        for h, w in levels
    ]
    return jnp.concatenate(means, axis=1)


def mixed(module: nn.Module, sizes: QFormerSizes, x: Array, begin, tap: int):
    """Vectors [B, N, z] through the transformer.

    Args:
      module: whose parameters these are.
      begin: embedded vectors -> the first queries; None where the vectors are their own.
      tap: see Transformer.

    Returns:
      Normalized vectors, and those after block `tap`.
    """

    def table(name, count):
        init = nn.initializers.normal(sizes.width**-0.5)
        return module.param(name, init, (count, sizes.width))

    trunk = sizes.trunk
    x = trunk.norm_layer("norm_in")(x)
    h = Linear(sizes.width, init="normal02", dtype=sizes.dtype, name="embed")(x)
    transformer = Transformer(trunk, name="trunk")
    if begin is None:
        h = h + table("positions", h.shape[1])[None].astype(h.dtype)
        h, _, tapped = transformer(h, tap=tap)
    else:
        queries = begin(h)
        places = table("positions", queries.shape[1]), table("context_positions", h.shape[1])
        h, _, tapped = transformer(queries, context=h, places=places, tap=tap)
    return trunk.norm_layer("norm_out")(h), tapped


class Sequence(nn.Module):
    """A map [B, h, w, z] -> latents [B, N, D], N = tokens or h w."""

    sizes: QFormerSizes

    @nn.compact
    def __call__(self, found: Float[Array, "B h w z"]) -> Float[Array, "B N D"]:
        s, batch, cells = self.sizes, len(found), found.shape[1:3]

        def begin(h):
            if s.queries == "learned":
                init = nn.initializers.normal(s.width**-0.5)
                queries = self.param("queries", init, (s.tokens, s.width)).astype(h.dtype)
                return jnp.broadcast_to(queries[None], (batch, *queries.shape))
            if s.queries == "levels":
                means = level_means(h.reshape(batch, *cells, s.width), s.levels(cells))
            else:
                means = h.mean(1, keepdims=True)
            means = Linear(s.width, init="normal02", dtype=s.dtype, name="from_means")(means)
            return jnp.broadcast_to(means, (batch, s.tokens, s.width))

        h = found.reshape(batch, -1, s.z_channels)
        return mixed(self, s, h, begin if s.tokens else None, -1)[0]


class Map(nn.Module):
    """Latents [B, N, z] -> a map [B, h, w, z], and features [B, h, w, D] after block `tap`."""

    sizes: QFormerSizes
    cells: tuple[int, int]

    @nn.compact
    def __call__(self, h: Float[Array, "B N z"], tap: int):
        s, shape = self.sizes, (len(h), *self.cells, self.sizes.width)

        def begin(h):
            return jnp.broadcast_to(h[:, :1], (len(h), self.cells[0] * self.cells[1], s.width))

        h, tapped = mixed(self, s, h, begin if s.tokens else None, tap)
        found = Conv(s.z_channels, dtype=s.dtype, kernel_init=INITS["normal02"], name="conv_map")(
            h.reshape(shape)
        )
        return found, None if tapped is None else tapped.reshape(shape)


class Encoder(nn.Module):
    """Pictures -> latents [B, *grid, channels], in float32."""

    sizes: QFormerSizes
    grid: tuple[int, ...]
    channels: int

    def setup(self):
        s = self.sizes
        self.pixels = conv.Encoder(s.stem, s.z_channels)
        self.sequence = Sequence(s)
        self.to_z = Linear(s.z_channels, init="normal02", dtype=s.dtype)
        self.to_latents = Linear(self.channels)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B *g c"]:
        z = self.to_latents(self.to_z(self.sequence(self.map(x))))
        return z.reshape(len(x), *self.grid, self.channels)

    def map(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w z"]:
        """What the convolutions make of pictures."""
        return self.pixels(x)


class Decoder(nn.Module):
    """Latents -> pictures of `channels` channels, in float32."""

    sizes: QFormerSizes
    cells: tuple[int, int]
    channels: int

    def setup(self):
        s = self.sizes
        self.from_latents = Linear(s.z_channels, dtype=s.dtype)
        self.to_map = Map(s, self.cells)
        self.pixels = conv.Decoder(s.stem, self.channels)

    def __call__(self, z: Float[Array, "B *g c"], tap: int = -1):
        found, tapped = self.map(z, tap)
        pictures = self.pixels(found)
        return pictures if tapped is None else (pictures, tapped)

    def map(self, z: Float[Array, "B *g c"], tap: int = -1):
        """What the convolutions draw, [B, h, w, z], and features; see Map."""
        return self.to_map(self.from_latents(z.reshape(len(z), -1, z.shape[-1])), tap)

    def draw(self, found: Float[Array, "B h w z"]) -> Float[Array, "B H W C"]:
        """The convolutions alone."""
        return self.pixels(found)


def make(section, dtype: str, where: str) -> QFormerSizes:
    """The sizes in a config section; raises ConfigError for wrong ones."""
    return build(QFormerSizes, section, where, named=True, dtype=dtype)

"""Transformers over patches of pictures or videos, as encoder and decoder of tokenizers.

Without registers a latent is a patch: the grid of ViT-VQGAN (Yu et al., "Vector-quantized Image
Modeling with Improved VQGAN", 2021). With registers latents are K learned vectors that join the
patches and alone are kept, and the decoder draws the patches from mask vectors that see them: TiTok
(Yu et al., "An Image is Worth 32 Tokens for Reconstruction and Generation", 2024), LARP (Wang et
al., "LARP: Tokenizing Videos with a Learned Autoregressive Generative Prior", 2024). DetailFlow's
decoder (Liu et al., "DetailFlow: 1D Coarse-to-Fine Autoregressive Image Generation via Next-Detail
Prediction", 2025) also draws smaller pictures from the first latents.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nexttok.config import build, check
from nexttok.nn.linear import INITS, Linear
from nexttok.nn.networks import divided
from nexttok.nn.patches import patchify, unpatchify
from nexttok.nn.positions import clip_table, sincos_table
from nexttok.nn.transformer import ACTIVATIONS, Transformer, TransformerConfig

POSITIONS, VISIBLE = ("learned", "sincos", "sincos_sum"), ("all", "causal")


@dataclasses.dataclass(frozen=True)
class ViTSizes:
    """Sizes of the pair.

    Attributes:
      patch: (rows, columns) or (frames, rows, columns) of a patch.
      width, depth, head_dim, mlp_hidden, gated, activation, bias, norm_affine: see
        nn/transformer.py; biases are those of attention (`qkv_bias` False: of its output alone) and
        MLP.
      final_norm: normalize after the last block.
      zero_output: a decoder's last layer starts at zero.
      positions: of patches and of a decoder's latents, learned | sincos | sincos_sum (of videos:
        clip_table of nn/positions.py for patches).
      registers: number of latents K; 0 for one per patch.
      visible: what registers see: all, or causal: patches and the registers before (patches then
        see patches alone), so that latents do not depend on later ones.
      group: of causal registers that see each other, but for the first `group`; 1 for none.
      class_token: an extra vector runs beside the patches, as in CLIP.
      pre_norm: normalize before the first block.
      scrambled: registers are read as if channels came before registers, as TiTok's first release
        does; only for its weights.
    """

    patch: tuple[int, ...]
    width: int
    depth: int
    head_dim: int
    mlp_hidden: int
    gated: bool
    activation: str
    bias: bool
    qkv_bias: bool
    norm_affine: bool
    final_norm: bool
    zero_output: bool
    positions: str
    registers: int
    visible: str
    group: int
    class_token: bool
    pre_norm: bool
    scrambled: bool
    remat: bool
    dtype: str = "float32"
    where: str = "tokenizer.encoder"

    last: ClassVar[tuple[str, ...]] = ("to_patches", "kernel")

    def __post_init__(self):
        for name, least in (("width", 1), ("depth", 1), ("head_dim", 1), ("mlp_hidden", 1),
                            ("registers", 0), ("group", 1)):  # fmt: skip
            value = getattr(self, name)
            check(value >= least, f"{self.where}.{name}", value, f"at least {least}")
        fits = len(self.patch) in (2, 3) and min(self.patch) >= 1
        check(fits, f"{self.where}.patch", self.patch, "(rows, columns) | (frames, rows, columns)")
        fits = self.width % self.head_dim == 0
        check(fits, f"{self.where}.head_dim", self.head_dim, f"a divisor of the width {self.width}")
        one_of = dict(activation=tuple(ACTIVATIONS), positions=POSITIONS, visible=VISIBLE)
        for name, allowed in one_of.items():
            value = getattr(self, name)
            check(value in allowed, f"{self.where}.{name}", value, " | ".join(allowed))
        check(self.bias or self.qkv_bias, f"{self.where}.qkv_bias", self.qkv_bias,
              "True, without bias")  # fmt: skip
        fits = self.positions != "sincos_sum" or len(self.patch) == 3
        check(fits, f"{self.where}.positions", self.positions, "learned | sincos, of pictures")
        axes = 4 if self.positions == "sincos_sum" else 2 * len(self.patch)
        fits = self.positions == "learned" or self.width % axes == 0
        check(fits, f"{self.where}.width", self.width, f"a multiple of {axes} for sincos positions")
        fits = self.visible == "all" or self.registers > 0
        check(fits, f"{self.where}.visible", self.visible, "all, without registers")
        fits = self.group == 1 or (self.visible == "causal" and self.registers % self.group == 0)
        allowed = f"1, or under visible = 'causal' a divisor of the {self.registers} registers"
        check(fits, f"{self.where}.group", self.group, allowed)
        fits = self.registers > 0 or not self.scrambled
        check(fits, f"{self.where}.scrambled", self.scrambled, "False, without registers")

    @property
    def trunk(self) -> TransformerConfig:
        """The transformer."""
        return TransformerConfig(
            width=self.width, depth=self.depth, head_dim=self.head_dim, gated=self.gated,
            mlp_hidden=self.mlp_hidden, activation=self.activation, bias=self.bias,
            qkv_bias=self.qkv_bias, mlp_bias=self.bias, norm_affine=self.norm_affine,
            remat=self.remat, dtype=self.dtype,
        )  # fmt: skip

    @property
    def blocks_to_align(self) -> int:
        """Blocks of the decoder whose features can be aligned: those of pictures."""
        return self.depth if len(self.patch) == 2 else 0

    def patches(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Patches per axis."""
        return divided(image_shape, self.patch, self.where)

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(K,) with registers, else the patches; see networks/__init__.py."""
        patches = self.patches(image_shape)
        return (self.registers,) if self.registers else patches

    def encoder(self, image_shape: tuple[int, ...], channels: int) -> "Encoder":
        """Pictures -> latents."""
        return Encoder(self, self.patches(image_shape), channels)

    def decoder(self, image_shape: tuple[int, ...]) -> "Decoder":
        """Latents -> pictures."""
        return Decoder(self, self.patches(image_shape), image_shape[-1])

    def steps(self, patches: int) -> Int[np.ndarray, "S"] | None:
        """Step ids of [patches | registers] (see nn/attention.py), None where all see all."""
        if self.visible == "all":
            return None
        first, i = np.zeros(patches, np.int32), np.arange(self.registers)
        steps = np.where(i < self.group, 1 + i, self.group + i // self.group)
        return np.concatenate([first, steps])


def fixed_positions(kind: str, grid: tuple[int, ...], width: int) -> Float[np.ndarray, "N D"]:
    """The table of a grid, of positions that are not learned."""
    table = clip_table if kind == "sincos_sum" and len(grid) == 3 else sincos_table
    return table(grid, width)


def placed(
    module: nn.Module,
    name: str,
    sizes: ViTSizes,
    grid: tuple[int, ...],
    smaller: tuple[int, ...] = (),
) -> Array:
    """Positions [1, N, D] of a grid: a parameter of the module, or a table.

    Those of a `smaller` grid are the same, interpolated linearly with antialiasing.
    """
    if sizes.positions != "learned":
        table = jnp.asarray(fixed_positions(sizes.positions, grid, sizes.width))
    else:
        table = module.param(name, INITS["normal02"], (int(np.prod(grid)), sizes.width))
    if smaller not in ((), grid):
        table = jax.image.resize(
            table.reshape(*grid, sizes.width), (*smaller, sizes.width), "linear"
        ).reshape(-1, sizes.width)
    return table[None]


def with_class(module: nn.Module, sizes: ViTSizes, h: Array) -> Array:
    """[class | patches]."""
    token = module.param("cls_token", INITS["normal02"], (1, sizes.width))
    first = jnp.broadcast_to(token[None].astype(h.dtype), (len(h), 1, sizes.width))
    return jnp.concatenate([first, h], axis=1)


class Encoder(nn.Module):
    """Pictures -> latents [B, *grid, channels], in float32.

    Registers are learned, unless others are given.
    """

    sizes: ViTSizes
    grid: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *s C"], registers: Float[Array, "#B K D"] | None = None
    ) -> Float[Array, "B *g c"]:
        s = self.sizes
        h = Linear(s.width, dtype=s.dtype, name="patch_embed")(patchify(x, s.patch))
        h = h + placed(self, "positions", s, self.grid).astype(h.dtype)
        h = with_class(self, s, h) if s.class_token else h
        others = h.shape[1]
        if s.registers:
            if registers is None:
                shape = (s.registers, s.width)
                registers = self.param("registers", INITS["normal02"], shape)[None]
            shape = (len(h), *registers.shape[1:])
            h = jnp.concatenate([h, jnp.broadcast_to(registers.astype(h.dtype), shape)], axis=1)
        h = s.trunk.norm_layer("norm_in")(h) if s.pre_norm else h
        h, _, _ = Transformer(s.trunk, name="trunk")(h, steps=s.steps(others))
        kept = h[:, others:] if s.registers else h[:, int(s.class_token) :]
        kept = s.trunk.norm_layer("norm_out")(kept) if s.final_norm else kept
        if s.scrambled:
            kept = kept.reshape(len(kept), s.width, s.registers).transpose(0, 2, 1)
        z = Linear(self.channels, name="to_latents")(kept)
        return z if s.registers else z.reshape(len(z), *self.grid, self.channels)


class Decoder(nn.Module):
    """Latents -> pictures of `channels` channels, in float32.

    With registers, it may read the first `keep` latents of each example only, and draw a picture of
    another `grid` of patches.
    """

    sizes: ViTSizes
    grid: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "B *g c"],
        keep: Int[Array, "B"] | None = None,
        grid: tuple[int, ...] = (),
        tap: int = -1,
    ):
        s, (h, tapped), grid = self.sizes, self.features(z, keep, grid, tap), grid or self.grid
        init = "zeros" if s.zero_output else "xavier"
        count = self.channels * int(np.prod(s.patch))
        pixels = Linear(count, init=init, name="to_patches")(h)
        pictures = unpatchify(pixels, grid, s.patch)
        return pictures if tap < 0 else (pictures, tapped.reshape(len(z), *grid, s.width))

    def features(
        self,
        z: Float[Array, "B *g c"],
        keep: Int[Array, "B"] | None = None,
        grid: tuple[int, ...] = (),
        tap: int = -1,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B N D"] | None]:
        """One vector per patch, at the end and after block `tap`."""
        s, count = self.sizes, int(np.prod(grid or self.grid))
        h = Linear(s.width, dtype=s.dtype, name="from_latents")(z.reshape(len(z), -1, z.shape[-1]))
        if s.registers:
            latents = h + placed(self, "latent_positions", s, (s.registers,)).astype(h.dtype)
            mask = self.param("mask_token", INITS["normal02"], (1, s.width)).astype(h.dtype)
            h = jnp.broadcast_to(mask[None], (len(h), count, s.width))
        h = h + placed(self, "positions", s, self.grid, grid).astype(h.dtype)
        h = with_class(self, s, h) if s.class_token else h
        others = h.shape[1]
        h = jnp.concatenate([h, latents], axis=1) if s.registers else h
        h = s.trunk.norm_layer("norm_in")(h) if s.pre_norm else h
        steps = None
        if keep is not None:  # nothing sees a latent past it, of a later step
            last = others + keep[:, None]
            steps = (jnp.arange(h.shape[1])[None] >= last).astype(jnp.int32)
        h, _, tapped = Transformer(s.trunk, name="trunk")(h, steps=steps, tap=tap)
        first = int(s.class_token)
        tapped = None if tapped is None else tapped[:, first : first + count]
        h = h[:, first : first + count]
        return s.trunk.norm_layer("norm_out")(h) if s.final_norm else h, tapped


def make(section, dtype: str, where: str) -> ViTSizes:
    """The sizes in a config section; raises ConfigError for wrong ones."""
    return build(ViTSizes, section, where, named=True, dtype=dtype)

"""A discriminator on the features of a frozen DINO-S (Sauer et al., "StyleGAN-T", 2023; as in VAR's
tokenizer, GigaTok and DetailFlow).

Sums of class and patch vectors, before the blocks and after some of them, are judged by small
convolutional heads along the row of patches, whose layers are normalized by their spectra.
"""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nexttok.nn.linear import INITS
from nexttok.nn.patches import patchify
from nexttok.nn.resize import area, bicubic, resample
from nexttok.nn.transformer import Transformer, TransformerConfig
from nexttok.nn.vit import MEAN, STD

TOGETHER = 8  # examples that a batch normalization sees, at most


@dataclasses.dataclass(frozen=True)
class DinoConfig:
    """The frozen network: DINO's ViT-S/16 by default.

    Attributes:
      width, depth, head_dim, patch: sizes.
      side: of the pictures that it takes.
      taps: blocks after which vectors are read, ascending.
    """

    width: int = 384
    depth: int = 12
    head_dim: int = 64
    patch: int = 16
    side: int = 224
    taps: tuple[int, ...] = (2, 5, 8, 11)

    @property
    def patches(self) -> int:
        """Of a picture."""
        return (self.side // self.patch) ** 2

    def trunk(self, depth: int) -> TransformerConfig:
        """`depth` of its blocks; keys have no bias."""
        return TransformerConfig(
            width=self.width, depth=depth, head_dim=self.head_dim, mlp_hidden=4 * self.width,
            activation="gelu_tanh", norm_affine=True, norm_eps=1e-6, bias=True, key_bias=False,
            mlp_bias=True,
        )  # fmt: skip

    def init(self, rng: Array) -> dict:
        """Random parameters {patch_embed, cls_token, positions, blocks}."""
        keys = jax.random.split(rng, 4)
        x, values = jnp.zeros((1, 1, self.width)), 3 * self.patch**2
        draw = nn.initializers.normal(0.02)
        return {
            "patch_embed": {
                "kernel": draw(keys[0], (values, self.width)), "bias": jnp.zeros(self.width)
            },
            "cls_token": draw(keys[1], (1, self.width)),
            "positions": draw(keys[2], (1 + self.patches, self.width)),
            **Transformer(self.trunk(self.depth)).init(keys[3], x)["params"],
        }  # fmt: skip


def fitted(x: Float[Array, "B H W C"], side: int, key: Array | None) -> Array:
    """Square pictures [B, side, side, C].

    Smaller ones are enlarged (bicubic); of larger ones, half of the batches show a random part
    and others are shrunk to means. Without a key all are shrunk.
    """
    size = x.shape[1]
    if size <= side:
        return x if size == side else resample(x, bicubic(side, size))
    shrunk = resample(x, area(side, size))
    if key is None:
        return shrunk
    where, whether = jax.random.split(key)
    top, left = jax.random.randint(where, (2,), 0, size - side + 1)
    shape = (len(x), side, side, x.shape[-1])
    part = jax.lax.dynamic_slice(x, (0, top, left, 0), shape)
    return jnp.where(jax.random.bernoulli(whether), part, shrunk)


def readouts(
    config: DinoConfig, params: dict, x: Float[Array, "B H W C"], key: Array | None = None
) -> list[Float[Array, "B P D"]]:
    """Class plus patch vectors of pictures in [-1, 1], before the blocks and after each tap.

    Args:
      config: sizes; params: as of its `init`.
      x: of one channel (it is repeated) or three.
      key: see `fitted`.
    """
    rgb = fitted(jnp.broadcast_to(x, (*x.shape[:3], 3)).astype(jnp.float32), config.side, key)
    mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (MEAN, STD))
    rows = patchify((0.5 * rgb + 0.5 - mean) / std, (config.patch, config.patch))
    embed = params["patch_embed"]
    h = rows @ embed["kernel"] + embed["bias"].reshape(1, 1, -1)
    first = jnp.broadcast_to(params["cls_token"][None], (len(h), 1, config.width))
    h = jnp.concatenate([first, h], axis=1) + params["positions"][None]
    found = [h[:, 1:] + h[:, :1]]
    for low, high in itertools.pairwise((0, *[t + 1 for t in config.taps])):
        part = jax.tree.map(lambda v, low=low, high=high: v[low:high], params["blocks"])
        h, _, _ = Transformer(config.trunk(high - low)).apply({"params": {"blocks": part}}, h)
        found.append(h[:, 1:] + h[:, :1])
    return found


class SpectralConv(nn.Module):
    """A circular convolution along a row, divided by its largest singular value.

    The value is that of one power iteration from the vector "u", whose change is sown under "moves"
    (Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018).
    """

    features: int
    side: int

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P F"]:
        kernel = self.param("kernel", INITS["xavier"], (self.side, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        u = self.param("u", nn.initializers.normal(), (self.features,))
        matrix = kernel.reshape(-1, self.features)
        fixed = jax.lax.stop_gradient(matrix)
        v = _unit(fixed @ jax.lax.stop_gradient(u))
        other = _unit(v @ fixed)
        self.sow("moves", "u", other - jax.lax.stop_gradient(u), reduce_fn=lambda _, new: new)
        pad = self.side // 2
        x = jnp.pad(x, ((0, 0), (pad, pad), (0, 0)), mode="wrap") if pad else x
        y = jax.lax.conv_general_dilated(
            x, kernel / (v @ matrix @ other), (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y + bias.reshape(1, 1, -1)


def _unit(v):
    return v / jnp.maximum(jnp.linalg.norm(v), 1e-12)


class LocalNorm(nn.Module):
    """Batch normalization of at most TOGETHER examples each, over examples and positions."""

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        parts = next(n for n in range(-(-len(x) // TOGETHER), len(x) + 1) if len(x) % n == 0)
        wide = x.reshape(parts, -1, x.shape[-1])
        wide = wide - wide.mean(1, keepdims=True)
        wide = wide / jnp.sqrt(jnp.square(wide).mean(1, keepdims=True) + 1e-6)
        return wide.reshape(x.shape) * scale.reshape(1, 1, -1) + bias.reshape(1, 1, -1)


class Heads(nn.Module):
    """Readouts -> logits of every patch of every one, [B, readouts * P].

    Attributes:
      kernel: patches that a head's second layer sees.
    """

    kernel: int = 9

    @nn.compact
    def __call__(self, found: list[Float[Array, "B P D"]]) -> Float[Array, "B N"]:
        logits = []
        for i, x in enumerate(found):
            width = x.shape[-1]
            for j, side in enumerate((1, self.kernel)):
                y = SpectralConv(width, side, name=f"head{i}_conv{j}")(x)
                y = LocalNorm(name=f"head{i}_norm{j}")(y)
                y = jnp.where(y >= 0, y, 0.2 * y)
                x = (x + y) / np.sqrt(2.0).astype(np.float32) if j else y
            logits.append(SpectralConv(1, 1, name=f"head{i}_out")(x)[..., 0])
        return jnp.concatenate(logits, axis=1)

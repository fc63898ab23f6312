"""CLIP's image tower (Radford et al., "Learning Transferable Visual Models ...", 2021)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.nn.attention import Attention
from nexttok.nn.linear import INITS, Linear
from nexttok.nn.norms import Norm, unit
from nexttok.nn.patches import patchify

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Sizes; ViT-L/14 at 336 pixels by default. `embedding` is the width of an embedding."""

    width: int = 1024
    depth: int = 24
    head_dim: int = 64
    patch: int = 14
    side: int = 336
    embedding: int = 768

    @property
    def patches(self) -> int:
        """Of a picture."""
        return (self.side // self.patch) ** 2


class ClipBlock(nn.Module):
    """Pre-norm block with x sigmoid(1.702 x) for its activation."""

    config: ClipConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], _=None):
        c = self.config
        h = Norm("layer", True, name="norm1")(x)
        x = x + Attention(c.width, c.head_dim, bias=True, name="attn")(h)[0]
        h = Linear(4 * c.width, name="fc1")(Norm("layer", True, name="norm2")(x))
        return x + Linear(c.width, name="fc2")(h * jax.nn.sigmoid(1.702 * h)), None


class ClipImages(nn.Module):
    """Pictures [B, side, side, 3] in [0, 1] to embeddings of unit length."""

    config: ClipConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        c = self.config
        mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (MEAN, STD))
        rows = patchify((x - mean) / std, (c.patch, c.patch))
        tokens = Linear(c.width, bias=False, name="patch_embed")(rows)
        cls = self.param("cls_token", INITS["normal02"], (1, c.width))
        positions = self.param("positions", INITS["normal02"], (1 + c.patches, c.width))
        first = jnp.broadcast_to(cls[None], (len(x), 1, c.width))
        tokens = jnp.concatenate([first, tokens], axis=1) + positions[None]
        tokens = Norm("layer", True, name="norm_in")(tokens)
        blocks = nn.scan(
            ClipBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=c.depth
        )
        tokens, _ = blocks(c, name="blocks")(tokens, None)
        pooled = Norm("layer", True, name="norm_out")(tokens[:, 0])
        return unit(Linear(c.embedding, bias=False, name="projection")(pooled))

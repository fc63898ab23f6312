"""VAR in: FoundationVision/VAR, models/var.py."""

import numpy as np

from nexttok.generator import Generator
from nexttok.interop import blocks
from nexttok.interop.checkpoints import Converter, stacked
from nexttok.interop.releases import HUB, Release

SOURCE = f"{HUB}/FoundationVision/var"
RELEASES = tuple(
    Release(f"d{depth}", f"var_d{depth}.pth", SOURCE, (f"var:imagenet{side}_d{depth}",))
    for depth, side in ((16, 256), (20, 256), (24, 256), (30, 256), (36, 512))
)


def convert(state: dict[str, np.ndarray], gen: Generator) -> dict:
    """Parameters of VAR, with adaLN per block or shared.

    Args:
      state: the released state dict (var_d16.pth, ...).
      gen: the generator of the config.

    Raises:
      ConfigError: listing missing, unknown and mis-shaped entries.
    """
    reader = Converter(state, "VAR's checkpoint")
    reader.ignore(r"lvl_1L$|attn_bias_for_masking$|.*zero_k_bias$")
    c, classes = gen.backbone, gen.num_classes + 1
    width, heads = c.width, c.width // c.head_dim

    def attention(name):
        parts = blocks.fused(reader, f"{name}.mat_qkv", width, False)
        parts["wq"]["bias"] = reader.take(f"{name}.q_bias", (width,))
        parts["wv"]["bias"] = reader.take(f"{name}.v_bias", (width,))
        parts["proj"] = reader.linear(f"{name}.proj", width, width)
        if c.qk_norm == "l2":
            parts["scale"] = reader.take(f"{name}.scale_mul_1H11", (1, heads, 1, 1)).reshape(-1)
        return parts

    def block(i):
        name = f"blocks.{i}"
        params = {
            "attn": attention(f"{name}.attn"),
            "mlp": blocks.mlp(
                reader, width, c.mlp_hidden, fc1=f"{name}.ffn.fc1", fc2=f"{name}.ffn.fc2"
            ),
        }
        if c.adaln_shared:
            table = reader.take(f"{name}.ada_gss", (1, 1, 6, width)).reshape(-1)
            return params | {"modulation": blocks.modulation(table)}
        return params | {"adaln": blocks.adaln(reader, f"{name}.ada_lin.1", width)}

    embed = {
        "project": reader.linear("word_embed", gen.spec.channels, width),
        "class_embedding": reader.take("class_emb.weight", (classes, width)),
        "sos": reader.take("pos_start", (1, 1, width)).reshape(1, width),
        "positions": reader.take("pos_1LC", (1, gen.spec.length, width))[0],
        "levels": reader.take("lvl_embed.weight", (len(gen.spec.scales), width)),
    }
    if c.adaln_shared:
        embed["adaln"] = blocks.adaln(reader, "shared_ada_lin.1", width)
    backbone = {
        "embed": embed,
        "trunk": {"blocks": stacked(block, c.depth)},
        "final": {"adaln": reader.linear("head_nm.ada_lin.1", width, 2 * width)},
    }
    head = {"logits": reader.linear("head", width, gen.spec.vocab)}
    return reader.finish({"backbone": backbone, "head": head})

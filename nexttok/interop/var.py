"""VAR in: FoundationVision/VAR, models/var.py."""

import numpy as np

from nexttok.generator import Generator
from nexttok.interop.checkpoints import Converter, stacked

# VAR orders modulations (gate, gate, scale, scale, shift, shift); nn/transformer.py wants
# (gate, gate, shift, scale, shift, scale).
ORDER = (0, 1, 4, 2, 5, 3)


def _modulation(values):
    """Reorders the six parts of the last axis."""
    parts = np.split(values, 6, axis=-1)
    return np.concatenate([parts[i] for i in ORDER], axis=-1)


def _adaln(reader, name, width):
    layer = reader.linear(name, width, 6 * width)
    return {k: _modulation(v) for k, v in layer.items()}


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
        rows = np.split(reader.take(f"{name}.mat_qkv.weight", (3 * width, width)), 3)
        parts = {k: {"kernel": v.T} for k, v in zip(("wq", "wk", "wv"), rows, strict=True)}
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
            "mlp": {
                "fc1": reader.linear(f"{name}.ffn.fc1", width, c.mlp_hidden),
                "fc2": reader.linear(f"{name}.ffn.fc2", c.mlp_hidden, width),
            },
        }
        if c.adaln_shared:
            table = reader.take(f"{name}.ada_gss", (1, 1, 6, width)).reshape(-1)
            return params | {"modulation": _modulation(table)}
        return params | {"adaln": _adaln(reader, f"{name}.ada_lin.1", width)}

    embed = {
        "project": reader.linear("word_embed", gen.spec.channels, width),
        "class_embedding": reader.take("class_emb.weight", (classes, width)),
        "sos": reader.take("pos_start", (1, 1, width)).reshape(1, width),
        "positions": reader.take("pos_1LC", (1, gen.spec.length, width))[0],
        "levels": reader.take("lvl_embed.weight", (len(gen.spec.scales), width)),
    }
    if c.adaln_shared:
        embed["adaln"] = _adaln(reader, "shared_ada_lin.1", width)
    backbone = {
        "embed": embed,
        "trunk": {"blocks": stacked(block, c.depth)},
        "final": {"adaln": reader.linear("head_nm.ada_lin.1", width, 2 * width)},
    }
    head = {"logits": reader.linear("head", width, gen.spec.vocab)}
    return reader.finish({"backbone": backbone, "head": head})

"""FlexTok's class-conditional generator in: EPFL-VILAB/search-over-tokens, flextok_ar, over the
transformer of apple/ml-l3m (EPFL-VILAB/FlexAR-1B-C2I).

A released file names no options: its config.yaml does, and config.generator.backbone must say the
same (bias and mlp_bias; activation is not to be seen in the weights at all).
"""

import numpy as np

from nexttok.generator import Generator
from nexttok.interop import blocks
from nexttok.interop.checkpoints import Converter, stacked
from nexttok.interop.releases import HUB, Release

RELEASES = (
    Release("1B", "FlexAR-1B-C2I/model.safetensors", f"{HUB}/EPFL-VILAB/FlexAR-1B-C2I",
            ("flextok:imagenet256_d18_d28",)),
)  # fmt: skip

ROOT = "models.ar_image_model"


def convert(state: dict[str, np.ndarray], gen: Generator) -> dict:
    """Parameters of the generator; the tokenizer's entries in the same file are left alone.

    Args:
      state: the released state dict.
      gen: the generator of the config.

    Raises:
      ConfigError: listing missing, unknown and mis-shaped entries.
    """
    reader = Converter(state, "FlexTok's generator")
    reader.ignore(r"models\.image_tokenizer\.")
    c, slots, vocab = gen.backbone, gen.inputs.slots, gen.spec.vocab

    def block(i):
        name = f"{ROOT}.trunk.blocks.{i}"
        attn = blocks.fused(reader, f"{name}.attn.qkv", c.width, c.bias)
        attn["proj"] = reader.linear(f"{name}.attn.proj", c.width, c.width, c.bias)
        parts = {fc: f"{name}.mlp.{fc}" for fc in ("fc1", "fc2", "fc3")[: 2 + c.gated]}
        return {
            "attn": attn,
            "mlp": blocks.mlp(reader, c.width, c.mlp_hidden, c.mlp_bias, **parts),
            "norm1": reader.norm(f"{name}.norm_1", c.width),
            "norm2": reader.norm(f"{name}.norm_2", c.width),
        }

    front = f"{ROOT}.preprocessor"
    start = reader.take(f"{front}.sos_token_embed", (1, 1, c.width))
    embed = {
        "embedding": reader.take(f"{front}.embedding.weight", (vocab, c.width)),
        "class_embedding": reader.take(f"{front}.cls_embedding.weight", (gen.num_classes, c.width)),
        "sos": start[0],
        "positions": reader.take(f"{front}.positional_embedding", (slots, c.width)),
    }
    backbone = {
        "embed": embed,
        "trunk": {"blocks": stacked(block, c.depth)},
        "final": {"norm": reader.norm(f"{ROOT}.trunk.post_trunk_norm", c.width)},
    }
    logits = reader.linear(f"{ROOT}.head.linear", c.width, vocab, gen.head.bias)
    return reader.finish({"backbone": backbone, "head": {"logits": logits}})

"""LlamaGen, RandAR and ARPG in: transformers of LLaMA's block (FoundationVision/LlamaGen,
ziqipang/RandAR, hp-l33/ARPG)."""

import numpy as np

from nexttok.generator import Generator
from nexttok.interop import blocks
from nexttok.interop.checkpoints import Converter, stacked
from nexttok.interop.releases import HUB, Release

LLAMAGEN_HUB, ARPG_HUB = f"{HUB}/FoundationVision/LlamaGen", f"{HUB}/hp-l33/ARPG"
LLAMAGEN = tuple(
    Release(f"{size} {side}", f"c2i_{size}_{side}.pt", LLAMAGEN_HUB,
            (f"llamagen:imagenet{side}_{size.lower()}",))
    for size, side in (
        ("B", 256), ("L", 256), ("B", 384), ("L", 384), ("XL", 384), ("XXL", 384), ("3B", 384),
    )
)  # fmt: skip
RANDAR = tuple(
    Release(
        size, f"randar_{parameters}_llamagen_360k_bs_1024_lr_0.0004.safetensors",
        f"{HUB}/ziqipang/RandAR", (f"randar:imagenet256_{size.lower()}",),
    )
    for size, parameters in (("L", "0.3b"), ("XL", "0.7b"))
)  # fmt: skip
ARPG = tuple(
    Release(size, f"arpg_{parameters}.pt", ARPG_HUB, (f"arpg:imagenet256_{size.lower()}",))
    for size, parameters in (("L", "300m"), ("XL", "700m"), ("XXL", "1b"))
)


def _mlp(reader, name, c):
    names = {"fc1": f"{name}.w1", "fc3": f"{name}.w3", "fc2": f"{name}.w2"}
    return blocks.mlp(reader, c.width, c.mlp_hidden, False, **names)


def llamagen(state: dict[str, np.ndarray], gen: Generator) -> dict:
    """Parameters of LlamaGen; also of RandAR, which adds the position instruction vector.

    Args:
      state: the released state dict.
      gen: the generator of the config.

    Raises:
      ConfigError: listing missing, unknown and mis-shaped entries.
    """
    reader = Converter(state, "LlamaGen's checkpoint")
    c, classes = gen.backbone, gen.num_classes + 1
    reader.ignore(r"freqs_cis$|causal_mask$|.*k_cache$|.*v_cache$")

    def block(i):
        name = f"layers.{i}"
        attn = blocks.fused(reader, f"{name}.attention.wqkv", c.width, False)
        attn["proj"] = reader.linear(f"{name}.attention.wo", c.width, c.width, bias=False)
        return {
            "attn": attn,
            "mlp": _mlp(reader, f"{name}.feed_forward", c),
            "norm1": blocks.scale(reader, f"{name}.attention_norm", c.width),
            "norm2": blocks.scale(reader, f"{name}.ffn_norm", c.width),
        }

    embed = {
        "embedding": reader.take("tok_embeddings.weight", (gen.spec.vocab, c.width)),
        "class_embedding": reader.take("cls_embedding.embedding_table.weight", (classes, c.width)),
    }
    if c.rotate_query:
        embed["mask_token"] = reader.take("pos_instruct_embeddings", (1, c.width))
    backbone = {
        "embed": embed,
        "trunk": {"blocks": stacked(block, c.depth)},
        "final": {"norm": blocks.scale(reader, "norm", c.width)},
    }
    head = {"logits": reader.linear("output", c.width, gen.spec.vocab, bias=False)}
    return reader.finish({"backbone": backbone, "head": head})


def arpg(state: dict[str, np.ndarray], gen: Generator) -> dict:
    """Parameters of ARPG, whose one table holds tokens, mask, classes, null class and a spare row.

    Args:
      state: the released state dict.
      gen: the generator of the config.

    Raises:
      ConfigError: listing missing, unknown and mis-shaped entries.
    """
    reader = Converter(state, "ARPG's checkpoint")
    c, vocab, classes = gen.backbone, gen.spec.vocab, gen.num_classes
    table = reader.take("embeddings.weight", (vocab + classes + 3, c.width))

    def attention(name, parts):
        return {
            ours: reader.linear(f"{name}.attn.{theirs}", c.width, c.width, bias=False)
            for ours, theirs in parts.items()
        }

    def rest(name):
        return {
            "mlp": _mlp(reader, f"{name}.ffn", c),
            "norm1": blocks.scale(reader, f"{name}.attn_norm", c.width),
            "norm2": blocks.scale(reader, f"{name}.ffn_norm", c.width),
        }

    def content(i):
        name = f"layers.self_dec.{i}"
        parts = {"wq": "to_q", "wk": "to_k", "wv": "to_v", "proj": "proj"}
        return {"attn": attention(name, parts)} | rest(name)

    def cross(i):
        name = f"layers.cross_dec.{i}"
        return attention(name, {"wq": "to_q", "proj": "proj"}) | rest(name)

    backbone = {
        "embed": {
            "embedding": table[:vocab],
            "mask_token": table[vocab : vocab + 1],
            "class_embedding": table[vocab + 1 : vocab + 2 + classes],
        },
        "content": {"blocks": stacked(content, c.depth)},
        "memory_norm": blocks.scale(reader, "layers.norm", c.width),
        "wk": reader.linear("layers.to_k", c.width, c.width, bias=False),
        "wv": reader.linear("layers.to_v", c.width, c.width, bias=False),
        "blocks": stacked(cross, c.decoder_depth),
        "final": {"norm": blocks.scale(reader, "norm", c.width)},
    }
    head = {"logits": reader.linear("head", c.width, vocab, bias=False)}
    return reader.finish({"backbone": backbone, "head": head})

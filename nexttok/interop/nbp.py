"""Next Block Prediction in: RenShuhuai-Andy/NBP, nbp/modules/gpt.py, the hybrid model.

Its one vocabulary holds the begin-of-video id, the fillers of the first block, text ids and video
ids, in this order; classes stand where text ids were, one slot in front.
"""

import numpy as np

from nexttok.generator import Generator
from nexttok.interop import blocks
from nexttok.interop.checkpoints import Converter, stacked


def convert(state: dict[str, np.ndarray], gen: Generator) -> dict:
    """Parameters of the hybrid model.

    Args:
      state: the released state dict; entries of the tokenizer (first_stage_model) are skipped.
      gen: the generator of the config; its head reserves the special and the text ids.

    Raises:
      ConfigError: listing missing, unknown and mis-shaped entries.
    """
    reader = Converter(state, "NBP's checkpoint")
    reader.ignore(r"first_stage_model\.|.*mask")
    c, root, vocab = gen.backbone, "transformer.", gen.head.reserved + gen.spec.vocab
    width, fillers = c.width, gen.inputs.fillers
    table = reader.take(f"{root}tok_emb.weight", (vocab, width))
    null = reader.take(f"{root}uncond_embedding", (1, width))
    classes = table[1 + fillers : 1 + fillers + gen.num_classes]

    def block(i):
        name = f"{root}blocks.{i}"
        parts = {"wq": "query", "wk": "key", "wv": "value", "proj": "proj"}
        return {
            "norm1": reader.norm(f"{name}.ln1", width),
            "attn": {k: reader.linear(f"{name}.attn.{v}", width, width) for k, v in parts.items()},
            "norm2": reader.norm(f"{name}.ln2", width),
            "mlp": blocks.mlp(
                reader, width, c.mlp_hidden, fc1=f"{name}.mlp.0", fc2=f"{name}.mlp.2"
            ),
        }

    embed = {
        "sos": table[:1],
        "fillers": table[1 : 1 + fillers],
        "class_embedding": np.concatenate([classes, null]),
        "embedding": table[gen.head.reserved :],
        "positions": reader.take(f"{root}pos_emb", (1, gen.inputs.slots, width))[0],
    }
    backbone = {
        "embed": embed,
        "trunk": {"blocks": stacked(block, c.depth)},
        "final": {"norm": reader.norm(f"{root}ln_f", width)},
    }
    head = {"logits": reader.linear(f"{root}head", width, vocab, bias=False)}
    return reader.finish({"backbone": backbone, "head": head})

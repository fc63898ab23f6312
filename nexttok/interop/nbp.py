"""Next Block Prediction in: RenShuhuai-Andy/NBP, nbp/modules/gpt.py.

The vocabulary of the hybrid model holds the begin-of-video id, the fillers of the first block, text
or class ids, and video ids, in this order; that of the pure model, which continues a video, is of
video ids alone. The released hybrid models read a class as the words of its name, in front.
"""

import numpy as np
from jaxtyping import Int

from nexttok.config import check
from nexttok.generator import Generator
from nexttok.interop import blocks
from nexttok.interop.checkpoints import Converter, stacked
from nexttok.interop.releases import HUB, Release
from nexttok.interop.ucf101 import TEXT_IDS, words

RELEASES = tuple(
    Release(
        f"{data} {size}", f"{data}_{size}_{kind}.ckpt", f"{HUB}/ShuhuaiRen/NBP-{data}-{size}",
        (f"nbp:{data}_{size}",),
    )
    for data, kind in (("ucf", "nbp16_hybrid"), ("k600", "nbp16"))
    for size in ("base", "3b")
)  # fmt: skip

ROOT = "transformer."


def convert(state: dict[str, np.ndarray], gen: Generator) -> dict:
    """Parameters of the hybrid or of the pure model.

    Args:
      state: the released state dict; entries of the tokenizer (first_stage_model) are skipped.
      gen: the generator of the config; its head reserves the special and the text ids.

    Raises:
      ConfigError: listing missing, unknown and mis-shaped entries; or text ids without the classes
        of UCF-101.
    """
    reader = Converter(state, "NBP's checkpoint")
    reader.ignore(r"first_stage_model\.|.*mask")
    c, vocab = gen.backbone, gen.head.reserved + gen.spec.vocab
    table = reader.take(f"{ROOT}tok_emb.weight", (vocab, c.width))
    embed = {
        "embedding": table[gen.head.reserved :],
        "positions": _positions(reader, gen.inputs.slots, c.width),
    }
    if gen.inputs.start:
        embed |= _special(reader, table, gen)
    else:
        reader.ignore(rf"{ROOT}uncond_embedding")  # of no rows

    def block(i):
        name = f"{ROOT}blocks.{i}"
        parts = {"wq": "query", "wk": "key", "wv": "value", "proj": "proj"}
        linear = reader.linear
        return {
            "norm1": reader.norm(f"{name}.ln1", c.width),
            "attn": {k: linear(f"{name}.attn.{v}", c.width, c.width) for k, v in parts.items()},
            "norm2": reader.norm(f"{name}.ln2", c.width),
            "mlp": blocks.mlp(
                reader, c.width, c.mlp_hidden, fc1=f"{name}.mlp.0", fc2=f"{name}.mlp.2"
            ),
        }

    backbone = {
        "embed": embed,
        "trunk": {"blocks": stacked(block, c.depth)},
        "final": {"norm": reader.norm(f"{ROOT}ln_f", c.width)},
    }
    head = {"logits": reader.linear(f"{ROOT}head", c.width, vocab, bias=False)}
    return reader.finish({"backbone": backbone, "head": head})


def _positions(reader, slots, width):
    """The first rows of a table that the releases made for 5120 slots."""
    name = f"{ROOT}pos_emb"
    held = np.shape(reader.state.get(name))
    rows = max(slots, held[1]) if len(held) == 3 else slots
    return reader.take(name, (1, rows, width))[0, :slots]


def _special(reader, table, gen):
    """Vectors of the start, the fillers, and the class slots, the last class being none."""
    special, prefix = 1 + gen.inputs.fillers, gen.backbone.prefix
    null = reader.take(f"{ROOT}uncond_embedding", (prefix, gen.backbone.width))
    names = table[special + _names(gen, gen.head.reserved - special)]
    return {
        "sos": table[:1],
        "fillers": table[1:special],
        "class_embedding": np.concatenate([names.reshape(-1, gen.backbone.width), null]),
    }


def _names(gen, ids: int) -> Int[np.ndarray, "classes prefix"]:
    """Ids of the class slots among so many text or class ids."""
    if ids != TEXT_IDS:
        check(ids == gen.num_classes, "generator.head.reserved", gen.head.reserved,
              f"special ids, and {TEXT_IDS} of text or {gen.num_classes} classes")  # fmt: skip
        return np.arange(ids)[:, None]
    found = words(gen.backbone.prefix)
    check(len(found) == gen.num_classes, "data.num_classes", gen.num_classes,
          f"{len(found)}, the classes of UCF-101 whose names the model reads")  # fmt: skip
    return found

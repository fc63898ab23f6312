"""MaskGIT in: google-research/maskgit, maskgit/nets/maskgit_transformer.py (flax).

Its one table holds codes, labels and, in the last row, the mask.
"""

import numpy as np

from nexttok.generator import Generator
from nexttok.interop.blocks import flax_layer, flax_norm
from nexttok.interop.checkpoints import Converter, stacked
from nexttok.interop.releases import Release

BUCKET = "https://storage.googleapis.com/maskgit-public/checkpoints"
RELEASES = tuple(
    Release(f"{side} x {side}", f"maskgit_imagenet{side}_checkpoint", BUCKET,
            (f"maskgit:imagenet{side}",))
    for side in (256, 512)
)  # fmt: skip


def convert(state: dict[str, np.ndarray], gen: Generator) -> dict:
    """Parameters of MaskGIT.

    Args:
      state: flat entries of the flax tree, named by '/'-joined paths.
      gen: the generator of the config.

    Raises:
      ConfigError: listing missing, unknown and mis-shaped entries.
    """
    reader = Converter(state, "MaskGIT's checkpoint")
    c, vocab, classes = gen.backbone, gen.spec.vocab, gen.num_classes
    width, heads = c.width, c.width // c.head_dim
    rows = vocab + classes + 1

    def dense(name, inputs, outputs):
        return flax_layer(reader, name, inputs, outputs)

    def norm(name):
        return flax_norm(reader, name, width)

    def attention(name):
        split = (heads, c.head_dim)
        params = {
            ours: {
                "kernel": reader.take(f"{name}/{theirs}/kernel", (width, *split)).reshape(
                    width, -1
                ),
                "bias": reader.take(f"{name}/{theirs}/bias", split).reshape(-1),
            }
            for ours, theirs in {"wq": "query", "wk": "key", "wv": "value"}.items()
        }
        kernel = reader.take(f"{name}/out/kernel", (*split, width)).reshape(-1, width)
        bias = reader.take(f"{name}/out/bias", (width,))
        return params | {"proj": {"kernel": kernel, "bias": bias}}

    def block(i):
        attn, mlp = (f"TransformerLayer_{i}/{part}_0" for part in ("Attention", "Mlp"))
        return {
            "attn": attention(f"{attn}/self_attention"),
            "norm1": norm(f"{attn}/attention_output_ln"),
            "mlp": {
                "fc1": dense(f"{mlp}/intermediate_output", width, c.mlp_hidden),
                "fc2": dense(f"{mlp}/layer_output", c.mlp_hidden, width),
            },
            "norm2": norm(f"{mlp}/layer_output_ln"),
        }

    table = reader.take("Embed_0/word_embeddings/embedding", (rows, width))
    slots = gen.inputs.slots
    backbone = {
        "embed": {
            "embedding": table[:vocab],
            "class_embedding": table[vocab : vocab + classes],
            "mask_token": table[-1:],
            "positions": reader.take("Embed_0/position_embeddings/embedding", (slots, width)),
            "embed_norm": norm("Embed_0/embeddings_ln"),
        },
        "trunk": {"blocks": stacked(block, c.depth)},
    }
    head = {
        "transform": dense("MlmLayer_0/mlm_dense", width, width),
        **norm("MlmLayer_0/mlm_ln"),
        "offset": reader.take("MlmLayer_0/mlm_bias/bias", (rows,)),
    }
    return reader.finish({"backbone": backbone, "head": head})

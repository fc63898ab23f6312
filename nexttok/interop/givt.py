"""GIVT in: google-research/big_vision, big_vision/models/proj/givt/givt.py (flax, scanned)."""

import numpy as np

from nexttok.generator import Generator
from nexttok.interop.blocks import flax_layer, flax_norm
from nexttok.interop.checkpoints import Converter
from nexttok.interop.releases import Release

BUCKET = "https://storage.googleapis.com/big_vision/givt"
RELEASES = (
    Release("causal", "givt_imagenet_2012_causal_params.npz", BUCKET, ("givt:imagenet256",)),
    Release("masked", "givt_imagenet_2012_maskgit_params.npz", BUCKET,
            ("givt:imagenet256_masked",)),
    Release("masked 512", "givt_imagenet_2012_maskgit_512_params.npz", BUCKET,
            ("givt:imagenet512_masked",)),
)  # fmt: skip


def convert(state: dict[str, np.ndarray], gen: Generator) -> dict:
    """Parameters of the causal or the masked GIVT.

    Args:
      state: flat entries of the flax tree, named by '/'-joined paths; layers are scanned along
        axis 1.
      gen: the generator of the config.

    Raises:
      ConfigError: listing missing, unknown and mis-shaped entries.
    """
    reader = Converter(state, "GIVT's checkpoint")
    c, classes, channels = gen.backbone, gen.num_classes, gen.spec.channels
    width, heads = c.width, c.width // c.head_dim
    root = "decoder/EncDecBlock"

    def stack(name, *shape):
        """A scanned parameter, its layer axis first."""
        whole = reader.take(f"{root}/{name}", (shape[0], c.depth, *shape[1:]))
        return np.moveaxis(whole, 1, 0)

    def heads_of(name):
        kernel = stack(f"SelfAttn/{name}/kernel", width, heads, c.head_dim)
        return {"kernel": kernel.reshape(c.depth, width, width)}

    def dense(name, inputs, outputs):
        return {
            "kernel": stack(f"MLP/{name}/kernel", inputs, outputs),
            "bias": stack(f"MLP/{name}/bias", outputs),
        }

    out = stack("SelfAttn/out/kernel", heads, c.head_dim, width)
    blocks = {
        "norm1": {"scale": stack("LayerNorm1/scale", width)},
        "attn": {
            "wq": heads_of("query"),
            "wk": heads_of("key"),
            "wv": heads_of("value"),
            "proj": {"kernel": out.reshape(c.depth, width, width)},
        },
        "norm2": {"scale": stack("LayerNorm3/scale", width)},
        "mlp": {
            "fc1": dense("Dense_0", width, c.mlp_hidden),
            "fc2": dense("Dense_1", c.mlp_hidden, width),
        },
    }
    # classes, then mask, no mask, replacement ("concat") or mask alone ("replace"), then no label
    special = (3 if c.concat_mask else 1) if gen.inputs.query else 0
    table = reader.take("EmbedLabels/embedding", (classes + special + 1, width))
    embed = {
        "class_embedding": np.concatenate([table[:classes], table[-1:]]),
        "project": flax_layer(reader, "EmbedTargets", channels, width),
        "positions": reader.take("decoder/pos_emb", (1, gen.inputs.slots, width))[0],
    }
    if special:
        embed["mask_token"] = table[classes + special - 1 : classes + special]
    if special == 3:
        embed["mask_flags"] = table[classes : classes + 2]
    final = flax_norm(reader, "decoder/LayerNorm", width)
    size = gen.head.mixtures * (1 + 2 * channels)
    moments = flax_layer(reader, "decoder/LogitsDense", width, size)
    backbone = {"embed": embed, "trunk": {"blocks": blocks}, "final": {"norm": final}}
    return reader.finish({"backbone": backbone, "head": {"moments": moments}})

"""D-AR's tokenizer in (showlab/D-AR, D-AR-tokenizer_v1.pt).

The release predicts data minus noise and counts time from noise to data: the last layer changes
sign. Its patches have channels first.
"""

import numpy as np

from nexttok.interop import blocks
from nexttok.interop.checkpoints import Converter, stacked
from nexttok.interop.releases import HUB, Release
from nexttok.nn.transformer import TransformerConfig
from nexttok.tokenizers.dar import DAR

RELEASES = (Release("v1", "D-AR-tokenizer_v1.pt", f"{HUB}/showlab/D-AR", ("dar:imagenet256",)),)

ROWS = 1024  # of the tables of queries and positions, of which the first N are used
NET = "diff_decoder.net"


def convert(state: dict[str, np.ndarray], model: DAR) -> dict:
    """Official entries -> parameters {encoder, quantizer, conditioner, decoder[, projector]}.

    The projector, which only training reads, is taken where the config has an alignment loss.

    Raises:
      ConfigError: entries are missing, unknown or mis-shaped.
    """
    reader = Converter(state, "D-AR's tokenizer")
    reader.ignore(r"quantize\.codebook_used$")
    bottleneck, width = model.bottleneck, model.condition_width
    channels, rows = bottleneck.channels, model.queries
    params = {
        "encoder": _encoder(reader, model),
        "quantizer": {
            "embedding": reader.take("quantize.embedding.weight", (bottleneck.size, channels))
        },
        "conditioner": {
            "from_latents": reader.linear("quant_out_conv", channels, width, False, 2),
            "positions": reader.take("decoder_embedding.weight", (ROWS, width))[:rows],
            "trunk": _trunk(reader, "decoder_layers", model.conditioner.config),
        },
        "decoder": _decoder(reader, model),
    }
    if model.align_weight:
        sizes = (model.decoder_width, *(model.align_hidden,) * 2, model.features.channels)
        params["projector"] = {
            name: reader.linear(f"{NET}.repa_out.{2 * i}", *sizes[i : i + 2])
            for i, name in enumerate(("fc1", "fc2", "out"))
        }
    else:
        reader.ignore(r"diff_decoder\.net\.repa_out\.")
    return reader.finish(params)


def _encoder(reader, model):
    c, side, image = model.encoder.config, model.encoder_patch, model.image_shape[-1]
    patch = reader.conv("patchify", image, c.width, side)
    return {
        "patch_embed": patch | {"kernel": patch["kernel"].reshape(-1, c.width)},
        "registers": reader.take("query_embedding.weight", (ROWS, model.query_rank))[
            : model.queries
        ],
        "project": reader.linear("query_linear", model.query_rank, c.width),
        "trunk": _trunk(reader, "encoder_layers", c),
        "to_latents": reader.linear(
            "quant_in_conv", c.width, model.bottleneck.inputs, bias=False, ones=2
        ),
    }


def _decoder(reader, model):
    c, side, image = model.decoder.config, model.decoder_patch, model.image_shape[-1]
    inputs = image * side**2
    patch = reader.linear(f"{NET}.conv_in", inputs, c.width, ones=2)
    pixels = reader.linear(f"{NET}.conv_out", c.width, inputs, ones=2)
    order = np.arange(inputs).reshape(image, side, side).transpose(1, 2, 0).ravel()
    return {
        "project": reader.linear(f"{NET}.cond_mlp", model.condition_width, c.width),
        "patch_embed": patch | {"kernel": patch["kernel"][order]},
        "blocks": stacked(lambda i: _denoiser(reader, f"{NET}.blocks.{i}", c), c.depth),
        "to_patches": {name: -value[..., order] for name, value in pixels.items()},
    }


def _denoiser(reader: Converter, name: str, c: TransformerConfig) -> dict:
    mlps = {"group": "cond_embed.{}", "time": "time_embed.mlp.{}"}
    modulation = reader.linear(f"{name}.adaLN_modulation.1", c.width, 6 * c.width)
    return {
        "attn": _attention(reader, f"{name}.attention", c),
        "cross": _attention(reader, f"{name}.cross_attn", c),
        "mlp": blocks.mlp(
            reader, c.width, c.mlp_hidden, fc1=f"{name}.mlp.fc1", fc2=f"{name}.mlp.fc2"
        ),
        "adaln": {part: _modulation(value) for part, value in modulation.items()},
    } | {
        ours: blocks.mlp(
            reader, c.width, c.width,
            fc1=f"{name}.{theirs.format(0)}", fc2=f"{name}.{theirs.format(2)}",
        )
        for ours, theirs in mlps.items()
    }  # fmt: skip


def _modulation(values: np.ndarray) -> np.ndarray:
    """(shift, scale, gate) of attention, then of the MLP -> (gate, gate, shift, scale, ...)."""
    parts = np.split(values, 6, axis=-1)
    return np.concatenate([parts[i] for i in (2, 5, 0, 1, 3, 4)], axis=-1)


def _attention(reader: Converter, name: str, c: TransformerConfig) -> dict:
    layers = {"wq": "q", "wk": "k", "wv": "v", "proj": "proj"}
    params = {ours: reader.linear(f"{name}.{n}", c.width, c.width) for ours, n in layers.items()}
    norms = {n: reader.norm(f"{name}.{n}", c.head_dim) for n in ("q_norm", "k_norm")}
    return params | norms


def _trunk(reader: Converter, root: str, c: TransformerConfig) -> dict:
    def block(i):
        name = f"{root}.{i}"
        names = dict(fc1=f"{name}.mlp.fc1", fc2=f"{name}.mlp.fc2")
        return {
            "attn": _attention(reader, f"{name}.attention", c),
            "mlp": blocks.mlp(reader, c.width, c.mlp_hidden, **names),
            "norm1": reader.norm(f"{name}.norm1", c.width),
            "norm2": reader.norm(f"{name}.norm2", c.width),
            "gate1": reader.take(f"{name}.gate1", (c.width,)),
            "gate2": reader.take(f"{name}.gate2", (c.width,)),
        }

    return {"blocks": stacked(block, c.depth)}

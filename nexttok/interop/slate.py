"""SLATE in (singhgautam/slate, the state dict that its training writes).

The start is row 0 of its dictionary, before the codes. Its decoder's first convolution, of one-hot
codes, is the codebook here.
"""

import numpy as np

from nexttok.bottlenecks.gumbel import Gumbel
from nexttok.config import check
from nexttok.interop import blocks
from nexttok.interop.checkpoints import Converter, stacked
from nexttok.interop.releases import Release
from nexttok.nn.networks.dvae import DVAESizes
from nexttok.nn.slate import PredictorConfig
from nexttok.nn.slot_attention import SlotConfig
from nexttok.tokenizers.autoencoder import Autoencoder
from nexttok.tokenizers.slate import SLATE

RELEASES = (
    Release("3D Shapes", "best_model.pt",
            "https://github.com/singhgautam/slate (no weights; its train.py writes the file)",
            ("slate:shapes3d",)),
)  # fmt: skip


def _block(reader: Converter, name: str, inputs: int, outputs: int, side: int = 1) -> dict:
    """A convolution and its normalization, whose scale and bias are the block's own entries."""
    if side == 1:
        conv = {"project": reader.linear(f"{name}.m", inputs, outputs, False, ones=2)}
    else:
        conv = {"conv": reader.conv(f"{name}.m", inputs, outputs, side, False)}
    return conv | {"norm": reader.norm(name, outputs)}


def _spread(reader: Converter, name: str, width: int) -> dict:
    """A block before pixels are spread: (channel, row, column) become (row, column, channel)."""

    def turned(x):
        x = x.reshape(*x.shape[:-1], width, 4)
        return x.swapaxes(-1, -2).reshape(*x.shape[:-2], 4 * width)

    block = _block(reader, name, width, 4 * width)
    return {part: {k: turned(v) for k, v in layer.items()} for part, layer in block.items()}


def _encoder(reader: Converter, sizes: DVAESizes, image: int, codes: int) -> dict:
    root, width = "dvae.encoder", sizes.width
    params = {"window": _block(reader, f"{root}.0", image, width, sizes.stride)}
    for i in range(sizes.mixes):
        params[f"mix{i}"] = _block(reader, f"{root}.{i + 1}", width, width)
    return params | {"out": reader.linear(f"{root}.{sizes.mixes + 1}", width, codes, ones=2)}


def _decoder(reader: Converter, sizes: DVAESizes, image: int) -> dict:
    root, width, at = "dvae.decoder", sizes.width, 1
    params = {"norm": reader.norm(f"{root}.0", width)}
    for level in range(sizes.halvings):
        params[f"window{level}"] = _block(reader, f"{root}.{at}", width, width, 3)
        for i in range(sizes.mixes):
            name = f"{root}.{at + 1 + i}"
            params[f"level{level}_mix{i}"] = _block(reader, name, width, width)
        params[f"spread{level}"] = _spread(reader, f"{root}.{at + 1 + sizes.mixes}", width)
        at += sizes.mixes + 3  # the last of them has no entries
    return params | {"out": reader.linear(f"{root}.{at}", width, image, ones=2)}


def _slots(reader: Converter, sizes: SlotConfig, inputs: int) -> dict:
    root, inner, width = "slot_attn", "slot_attn.slot_attention", sizes.width

    def gru(end):
        kernel = reader.take(f"{inner}.gru.weight_{end}", (3 * width, width)).T
        return {"kernel": kernel, "bias": reader.take(f"{inner}.gru.bias_{end}", (3 * width,))}

    def mlp(name, size, hidden):
        return blocks.mlp(reader, size, hidden, fc1=f"{name}.mlp.0", fc2=f"{name}.mlp.2")

    return {
        "slot_mean": reader.take(f"{root}.slot_mu", (1, 1, width))[0, 0],
        "slot_log_scale": reader.take(f"{root}.slot_log_sigma", (1, 1, width))[0, 0],
        "norm_in": reader.norm(f"{root}.layer_norm", inputs),
        "mlp": mlp(root, inputs, inputs),
        "norm": reader.norm(f"{inner}.norm_inputs", inputs),
        "wk": reader.linear(f"{inner}.project_k", inputs, width, False),
        "wv": reader.linear(f"{inner}.project_v", inputs, width, False),
        "update": {
            "norm1": reader.norm(f"{inner}.norm_slots", width),
            "wq": reader.linear(f"{inner}.project_q", width, width, False),
            "memory": {"gru_input": gru("ih"), "gru_state": gru("hh")},
            "norm2": reader.norm(f"{inner}.norm_mlp", width),
            "mlp": mlp(inner, width, sizes.mlp_hidden),
        },
    }


def _attention(reader: Converter, name: str, width: int) -> dict:
    names = dict(wq="q", wk="k", wv="v", proj="o")
    return {k: reader.linear(f"{name}.proj_{end}", width, width, False) for k, end in names.items()}


def _layer(reader: Converter, name: str, sizes: PredictorConfig) -> dict:
    width, cross = sizes.width, f"{name}.encoder_decoder_attn"
    ffn = dict(fc1=f"{name}.ffn.0", fc2=f"{name}.ffn.2")
    return {
        "norm1": reader.norm(f"{name}.self_attn_layer_norm", width),
        "attn": _attention(reader, f"{name}.self_attn", width),
        "norm_cross": reader.norm(f"{cross}_layer_norm", width),
        "cross": _attention(reader, cross, width),
        "norm2": reader.norm(f"{name}.ffn_layer_norm", width),
        "mlp": blocks.mlp(reader, width, sizes.mlp_hidden, **ffn),
    }


def _released(model: SLATE | Autoencoder) -> bool:
    """Whether it has the official parts."""
    if not isinstance(model, SLATE):
        return False
    enc, dec = model.dvae.encoder_sizes, model.dvae.decoder_sizes
    same = isinstance(enc, DVAESizes) and isinstance(dec, DVAESizes) and enc.width == dec.width
    codes = model.dvae.bottleneck
    return same and isinstance(codes, Gumbel) and codes.channels == dec.width


def convert(state: dict[str, np.ndarray], model: SLATE | Autoencoder) -> dict:
    """Official entries -> parameters of a SLATE.

    Raises:
      ConfigError: the config is of another tokenizer, or entries are missing, unknown or
        mis-shaped.
    """
    check(_released(model), "tokenizer", type(model).__name__, "slate, as in configs/slate.py")
    dvae = model.dvae
    enc, dec, codes = dvae.encoder_sizes, dvae.decoder_sizes, dvae.bottleneck
    reader, image = Converter(state, "SLATE"), model.image_shape[-1]
    sizes, vocab, length = model.predictor_sizes, codes.size, dvae.spec.length
    reader.ignore(r"tf_dec\.blocks\.\d+\.self_attn_mask$")
    rows = reader.take("dictionary.dictionary.weight", (1 + vocab, sizes.width))
    trunk = stacked(lambda i: _layer(reader, f"tf_dec.blocks.{i}", sizes), sizes.depth)
    book = reader.linear("dvae.decoder.0.m", vocab, codes.channels, False, ones=2)["kernel"]
    params = {
        "encoder": _encoder(reader, enc, image, vocab),
        "quantizer": {"embedding": book, "seen": np.float32(codes.anneal)},
        "decoder": _decoder(reader, dec, image),
        "embedding": {
            "sos": rows[:1],
            "embedding": rows[1:],
            "positions": reader.take("positional_encoder.pe", (1, 1 + length, sizes.width))[0],
        },
        "slots": _slots(reader, model.slot_sizes, sizes.width),
        "predictor": {
            "project": reader.linear("slot_proj", model.slot_sizes.width, sizes.width, False),
            "trunk": {"blocks": trunk},
            "norm_out": reader.norm("tf_dec.layer_norm", sizes.width),
            "logits": reader.linear("out", sizes.width, vocab, False),
        },
    }
    return reader.finish(params)

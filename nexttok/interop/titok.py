"""TiTok in (bytedance/1d-tokenizer, tokenizer_titok_l32 | b64 | s128, with their pixel decoders).

Its pictures lie in [0, 1]: the patch layer takes ours in [-1, 1] with halved weights. Positions of
registers and of the class vector are added to them once and for all.
"""

import numpy as np

from nexttok.config import check
from nexttok.interop import blocks
from nexttok.interop.checkpoints import Converter, stacked
from nexttok.interop.releases import HUB, Release
from nexttok.nn.networks.proxy import ProxySizes
from nexttok.nn.networks.vit import ViTSizes
from nexttok.tokenizers.autoencoder import Autoencoder

RELEASES = tuple(
    Release(size, f"tokenizer_titok_{name}.bin", f"{HUB}/fun-research/TiTok",
            (f"titok:imagenet256_{name}",))
    for size, name in (("L-32", "l32"), ("B-64", "b64"), ("S-128", "s128"))
)  # fmt: skip


def _block(reader: Converter, name: str, sizes: ViTSizes) -> dict:
    """open_clip's residual attention block."""
    width = sizes.width
    names = dict(fc1=f"{name}.mlp.c_fc", fc2=f"{name}.mlp.c_proj")
    return {
        "norm1": reader.norm(f"{name}.ln_1", width),
        "attn": blocks.packed_attention(reader, f"{name}.attn", width),
        "norm2": reader.norm(f"{name}.ln_2", width),
        "mlp": blocks.mlp(reader, width, sizes.mlp_hidden, **names),
    }


def _shared(reader: Converter, name: str, sizes: ViTSizes, patches: int) -> dict:
    """What encoder and decoder both have, but the class vector's position."""
    width = sizes.width
    table = reader.take(f"{name}.positional_embedding", (patches + 1, width))
    return {
        "cls_token": reader.take(f"{name}.class_embedding", (1, width)) + table[:1],
        "positions": table[1:],
        "norm_in": reader.norm(f"{name}.ln_pre", width),
        "trunk": {
            "blocks": stacked(
                lambda i: _block(reader, f"{name}.transformer.{i}", sizes), sizes.depth
            )
        },
        "norm_out": reader.norm(f"{name}.ln_post", width),
    }


def _pixel_block(reader, name, inputs, outputs):
    params = {
        "norm1": reader.norm(f"{name}.norm1", inputs),
        "conv1": reader.conv(f"{name}.conv1", inputs, outputs, bias=False),
        "norm2": reader.norm(f"{name}.norm2", outputs),
        "conv2": reader.conv(f"{name}.conv2", outputs, outputs, bias=False),
    }
    if inputs != outputs:
        short = f"{name}.nin_shortcut"
        params["out"] = reader.linear(short, outputs, outputs, bias=False, ones=2)
    return params


def _pixel_level(reader, names, inputs, outputs):
    widths = (inputs, *[outputs] * len(names))
    return {
        f"res{j}": _pixel_block(reader, name, widths[j], outputs) for j, name in enumerate(names)
    }


def _pixels(reader: Converter, sizes: ProxySizes, image: int) -> dict:
    """Parameters of networks.pooled_conv.Decoder from `pixel_decoder.*`."""
    root, count = "pixel_decoder", sizes.blocks
    width = sizes.pixel_width * sizes.multipliers[-1]
    middle = [f"{root}.mid.{j}" for j in range(count)]
    params = {
        "conv_in": reader.conv(f"{root}.conv_in", sizes.code_channels, width),
        "middle": _pixel_level(reader, middle, width, width),
    }
    for i in reversed(range(len(sizes.multipliers))):
        outputs = sizes.pixel_width * sizes.multipliers[i]
        names = [f"{root}.up.{i}.block.{j}" for j in range(count)]
        params[f"level{i}"] = _pixel_level(reader, names, width, outputs)
        width = outputs
        if i > 0:
            params[f"conv_up{i}"] = reader.conv(f"{root}.up.{i}.upsample_conv", width, width)
    params["norm"] = reader.norm(f"{root}.norm_out", width)
    return params | {"conv_out": reader.conv(f"{root}.conv_out", width, image)}


def convert(state: dict[str, np.ndarray], model: Autoencoder) -> dict:
    """Official entries -> parameters {encoder, decoder, quantizer} of a TiTok's autoencoder.

    Raises:
      ConfigError: the config is of another network, or entries are missing, unknown or mis-shaped.
    """
    enc, dec = model.encoder_sizes, model.decoder_sizes
    fits = isinstance(enc, ViTSizes) and enc.scrambled and isinstance(dec, ProxySizes)
    check(fits, "tokenizer", model.where, "a released size of configs/titok.py")
    reader, image = Converter(state, "TiTok's tokenizer"), model.image_shape[-1]
    count = int(np.prod(enc.patches(model.image_shape)))
    side, channels = enc.patch[0], model.bottleneck.channels
    kernel = reader.take("encoder.patch_embed.weight", (enc.width, image, side, side))
    kernel = kernel.transpose(2, 3, 1, 0).reshape(-1, enc.width) / 2
    bias = reader.take("encoder.patch_embed.bias", (enc.width,)) + kernel.sum(0)
    places = "latent_token_positional_embedding"
    registers = reader.take("latent_tokens", (enc.registers, enc.width))
    encoder = _shared(reader, "encoder", enc, count) | {
        "patch_embed": {"kernel": kernel, "bias": bias},
        "registers": registers + reader.take(f"encoder.{places}", (enc.registers, enc.width)),
        "to_latents": reader.linear("encoder.conv_out", enc.width, channels, ones=2),
    }
    hidden = 2 * dec.width
    decoder = _shared(reader, "decoder", dec, count) | {
        "from_latents": reader.linear("decoder.decoder_embed", channels, dec.width),
        "latent_positions": reader.take(f"decoder.{places}", (dec.registers, dec.width)),
        "mask_token": reader.take("decoder.mask_token", (1, 1, dec.width))[0],
        "fc1": reader.linear("decoder.ffn.0", dec.width, hidden, ones=2),
        "logits": reader.linear("decoder.ffn.2", hidden, dec.codes, ones=2),
        "embedding": reader.take("pixel_quantize.embedding.weight", (dec.codes, dec.code_channels)),
        "pixels": _pixels(reader, dec, image),
    }
    rows = reader.take("quantize.embedding.weight", (model.spec.vocab, channels))
    params = {"encoder": encoder, "decoder": decoder, "quantizer": {"embedding": rows}}
    return reader.finish(params)

"""GigaTok in (SilentView/GigaTok, VQ_SS256 | SB256 | BL256 | XLXXL256, and the 2D ones).

Its perceptron of aligned features, which training alone needs, is left out.
"""

import numpy as np

from nexttok.config import check
from nexttok.interop import blocks, vqgan
from nexttok.interop.checkpoints import Converter, stacked
from nexttok.interop.releases import Release
from nexttok.nn.networks.qformer import QFormerSizes
from nexttok.tokenizers.autoencoder import Autoencoder

DRIVE = "https://drive.google.com/file/d"
RELEASES = (
    Release("S-S", "VQ_SS256_e100.pt", f"{DRIVE}/1Q_WHCT6mdNnu0GkHCm0CbXaP6kFeTe5h",
            ("gigatok:imagenet256_ss",)),
    Release("S-B", "VQ_SB256_e200.pt", f"{DRIVE}/17K-h2Jwep53RUEf6CEOV3ro7Cz_DaIWC",
            ("gigatok:imagenet256_sb",)),
    Release("B-L", "VQ_BL256_e200.pt", f"{DRIVE}/1VnBu4aj0N7lFa1_wKBdTgLNZmaNgFvwi",
            ("gigatok:imagenet256_bl",)),
    Release("B-L, DINO discriminator", "VQ_BL256_dino_disc.pt",
            f"{DRIVE}/11bXyg6y15hIWYnIsl7YbwDtRAJMK7jjn", ("gigatok:imagenet256_bl",)),
    Release("XL-XXL", "VQ_XLXXL256_e300.pt", f"{DRIVE}/1HK_bV_zklLfGmIHGE4gMwjfhLLKi6Z3G",
            ("gigatok:imagenet256_xl_xxl",)),
)  # fmt: skip

ROOTS = ("ema", "model")


def _block(reader: Converter, name: str, sizes: QFormerSizes) -> dict:
    """DETR's decoder layer, or without tokens a plain one."""
    width, norms = sizes.width, {"norm1": "norm1", "norm2": "norm2"}
    params = {"attn": blocks.packed_attention(reader, f"{name}.self_attn", width)}
    if sizes.tokens:
        norms = {"norm1": "norm1", "norm_cross": "norm2", "norm2": "norm3"}
        params["cross"] = blocks.packed_attention(reader, f"{name}.multihead_attn", width)
    names = dict(fc1=f"{name}.linear1", fc2=f"{name}.linear2")
    return params | {
        **{ours: reader.norm(f"{name}.{theirs}", width) for ours, theirs in norms.items()},
        "mlp": blocks.mlp(reader, width, 4 * width, **names),
    }


def _mixed(reader: Converter, name: str, sizes: QFormerSizes, embed: str, slots: dict) -> dict:
    """The transformer between its norms; `slots` counts those of each table of positions."""
    width = sizes.width
    return {
        "norm_in": reader.norm(f"{name}.ln_pre", sizes.z_channels),
        "embed": reader.linear(f"{name}.{embed}", sizes.z_channels, width),
        "trunk": {
            "blocks": stacked(
                lambda i: _block(reader, f"{name}.transformer.{i}", sizes), sizes.depth
            )
        },
        "norm_out": reader.norm(f"{name}.ln_post", width),
        **{
            ours: reader.take(f"{name}.{theirs}", (count, 1, width))[:, 0]
            for ours, (theirs, count) in slots.items()
        },
    }


def _encoder(reader: Converter, sizes: QFormerSizes, cells: int, channels: int, image: int):
    z, width = sizes.z_channels, sizes.width
    ours, theirs = "positional_embedding", "latent_token_positional_embedding"
    if sizes.tokens:
        name = "s2to1encoder"
        slots = {"context_positions": (ours, cells), "positions": (theirs, sizes.tokens)}
    else:
        name, slots = "s2dencoder", {"positions": (ours, cells)}
    sequence = _mixed(reader, name, sizes, "encoder_embed", slots)
    if sizes.tokens and sizes.queries == "learned":
        sequence["queries"] = reader.take(f"{name}.query_1d", (sizes.tokens, 1, width))[:, 0]
    elif sizes.tokens:
        sequence["from_means"] = reader.linear(f"{name}.global_proj", width, width)
    return {
        "pixels": vqgan.convert_encoder(reader, "", sizes.stem, "llamagen", z, image),
        "sequence": sequence,
        "to_z": reader.linear(f"{name}.conv_out", width, z, ones=2),
        "to_latents": reader.linear("quant_conv", z, channels, ones=2),
    }


def _decoder(reader: Converter, sizes: QFormerSizes, cells: int, channels: int, image: int):
    z, width = sizes.z_channels, sizes.width
    ours, theirs = "positional_embedding", "latent_token_positional_embedding"
    name, slots = "s2ddecoder", {"positions": (ours, cells)}
    if sizes.tokens:
        name = "s1to2decoder"
        slots["context_positions"] = (theirs, sizes.tokens)
    found = _mixed(reader, name, sizes, "decoder_embed", slots)
    return {
        "from_latents": reader.linear("post_quant_conv", channels, z, ones=2),
        "to_map": found | {"conv_map": reader.conv(f"{name}.conv_out", width, z)},
        "pixels": vqgan.convert_decoder(reader, "", sizes.stem, "llamagen", z, image),
    }


def convert(state: dict[str, np.ndarray], model: Autoencoder) -> dict:
    """Official entries -> parameters of tokenizers.autoencoder with networks `qformer`.

    Args:
      state: a flat state dict, as of checkpoints.pick(read(path), *ROOTS).
      model: the autoencoder that the parameters are for.

    Raises:
      ConfigError: the model's networks are others, or entries are missing, unknown or mis-shaped.
    """
    sizes = model.encoder_sizes, model.decoder_sizes
    fits = all(isinstance(s, QFormerSizes) for s in sizes)
    check(fits, "tokenizer", model.where, "a released size of configs/gigatok.py")
    reader = Converter(state, "GigaTok checkpoint")
    reader.ignore(r"quantize\.codebook_used$|(s1to2|s2d)decoder\.distill_mlp\.")
    rows, columns = sizes[0].cells(model.image_shape)
    shared = rows * columns, model.bottleneck.channels, model.image_shape[-1]
    shape = (model.spec.vocab, model.bottleneck.channels)
    params = {
        "encoder": _encoder(reader, sizes[0], *shared),
        "decoder": _decoder(reader, sizes[1], *shared),
        "quantizer": {"embedding": reader.take("quantize.embedding.weight", shape)},
    }
    return reader.finish(params)

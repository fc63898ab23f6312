"""DetailFlow's tokenizer in (ByteFlow-AI/DetailFlow, released as DetailFlow-16 | -32 | -64).

What its training alone reads is left out: the frozen SigLIP 2 and the projection to its features.
"""

import numpy as np

from nexttok.config import check
from nexttok.interop import blocks
from nexttok.interop.checkpoints import Converter, stacked
from nexttok.interop.releases import HUB, Release
from nexttok.nn.networks.vit import ViTSizes
from nexttok.tokenizers.autoencoder import Autoencoder
from nexttok.tokenizers.detailflow import DetailFlow

RELEASES = tuple(
    Release(f"{size}", f"DetailFlow-{size}/checkpoints/{tokens}.pt",
            f"{HUB}/ByteFlow-AI/DetailFlow-{size}",
            (f"detailflow:imagenet256_{size}",))
    for size, tokens in ((16, 128), (32, 256), (64, 512))
)  # fmt: skip

TRAINING = r"repa_model\.|projection\.|global_token_proj\.|quantize\.codebook_used"
ATTENTION = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "proj": "out_proj"}


def _block(reader: Converter, name: str, sizes: ViTSizes) -> dict:
    """SigLIP 2's encoder layer."""
    width = sizes.width
    return {
        "norm1": reader.norm(f"{name}.layer_norm1", width),
        "attn": {
            ours: reader.linear(f"{name}.self_attn.{theirs}", width, width)
            for ours, theirs in ATTENTION.items()
        },
        "norm2": reader.norm(f"{name}.layer_norm2", width),
        "mlp": blocks.mlp(
            reader, width, sizes.mlp_hidden, fc1=f"{name}.mlp.fc1", fc2=f"{name}.mlp.fc2"
        ),
    }


def _shared(reader: Converter, root: str, sizes: ViTSizes, patches: int) -> dict:
    """What encoder and decoder both have."""
    name = f"{root}.visual_model"
    table = f"{name}.embeddings.position_embedding.weight"
    return {
        "positions": reader.take(table, (patches, sizes.width)),
        "trunk": {
            "blocks": stacked(
                lambda i: _block(reader, f"{name}.encoder.layers.{i}", sizes), sizes.depth
            )
        },
        "norm_out": reader.norm(f"{name}.post_layernorm", sizes.width),
    }


def convert(state: dict[str, np.ndarray], model: Autoencoder) -> dict:
    """Official entries -> parameters {encoder, registers, decoder, quantizer}.

    Raises:
      ConfigError: the config is of another network, or entries are missing, unknown or mis-shaped.
    """
    fits = isinstance(model, DetailFlow) and model.correct
    check(fits, "tokenizer", model.where, "a released size of configs/detailflow.py")
    enc, dec, channels = model.encoder_sizes, model.decoder_sizes, model.bottleneck.channels
    counts = [int(np.prod(sizes.patches(model.image_shape))) for sizes in (enc, dec)]
    pixels = [model.image_shape[-1] * int(np.prod(sizes.patch)) for sizes in (enc, dec)]
    reader = Converter(state, "DetailFlow's tokenizer")
    reader.ignore(TRAINING)

    def table(name, sizes):
        return reader.take(name, (1, model.count, sizes.width))[0]

    embed = "encoder.visual_model.embeddings.patch_embedding"
    params = {
        "encoder": _shared(reader, "encoder", enc, counts[0])
        | {
            "patch_embed": reader.linear(embed, pixels[0], enc.width),
            "to_latents": reader.linear("quant_conv", enc.width, channels),
        },
        "registers": {
            "registers": table("encoder.latent_tokens", enc),
            "refined_registers": table("encoder.refined_tokens", enc),
            "latent_positions": table("encoder.latent_pos_embed", enc),
            "from_latents": reader.linear("refine_conv", channels, enc.width),
        },
        "decoder": _shared(reader, "decoder", dec, counts[1])
        | {
            "from_latents": reader.linear("post_quant_conv", channels, dec.width),
            "latent_positions": table("decoder.latent_pos_embed", dec),
            "mask_token": reader.take("decoder.mask_token", (1, 1, dec.width))[0],
            "to_patches": reader.linear("decoder.to_pixel.model", dec.width, pixels[1]),
        },
        "quantizer": {
            "embedding": reader.take("quantize.embedding.weight", (model.spec.vocab, channels))
        },
    }
    return reader.finish(params)

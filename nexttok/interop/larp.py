"""LARP's tokenizer in (hywang66/LARP-L-long-tokenizer), with the prior that it was trained with.

Its pictures lie in [0, 1]: the patch layer takes ours in [-1, 1] with halved weights, and the last
layer's are doubled. Its tables of positions are compared with the computed ones.
"""

import numpy as np

from nexttok.bottlenecks.prior import PriorVQ
from nexttok.config import check
from nexttok.interop import blocks
from nexttok.interop.checkpoints import Converter, stacked
from nexttok.interop.releases import HUB, Release
from nexttok.nn.networks.vit import ViTSizes, fixed_positions
from nexttok.tokenizers.autoencoder import Autoencoder

RELEASES = (
    Release("L-long", "LARP-L-long-tokenizer/model.safetensors",
            f"{HUB}/hywang66/LARP-L-long-tokenizer", ("larp:k600_l_long",)),
)  # fmt: skip


def _trunk(reader: Converter, name: str, sizes: ViTSizes) -> dict:
    """timm's blocks, whose attention has a bias at its output alone."""
    width = sizes.width

    def block(i):
        own = f"{name}.blocks.{i}"
        names = dict(fc1=f"{own}.mlp.fc1", fc2=f"{own}.mlp.fc2")
        attention = blocks.fused(reader, f"{own}.attn.qkv", width, bias=False)
        return {
            "norm1": reader.norm(f"{own}.norm1", width),
            "attn": attention | {"proj": reader.linear(f"{own}.attn.proj", width, width)},
            "norm2": reader.norm(f"{own}.norm2", width),
            "mlp": blocks.mlp(reader, width, sizes.mlp_hidden, **names),
        }

    return {"blocks": stacked(block, sizes.depth)}


def _prior(reader: Converter, bottleneck: PriorVQ) -> dict:
    """Parameters of nn.prior.Prior."""
    root, width, channels = "prior_model", bottleneck.width, bottleneck.channels

    def block(i):
        own = f"{root}.blocks.{i}"
        layers = dict(wq="query", wk="key", wv="value", proj="proj")
        names = dict(fc1=f"{own}.mlp.0", fc2=f"{own}.mlp.2")
        return {
            "norm1": reader.norm(f"{own}.ln1", width),
            "attn": {k: reader.linear(f"{own}.attn.{n}", width, width) for k, n in layers.items()},
            "norm2": reader.norm(f"{own}.ln2", width),
            "mlp": blocks.mlp(reader, width, 4 * width, **names),
        }

    return {
        "from_latents": reader.linear(f"{root}.input_proj", channels, width),
        "positions": reader.take(f"{root}.pos_emb", (1, bottleneck.length, width))[0],
        "trunk": {"blocks": stacked(block, bottleneck.depth)},
        "norm_out": reader.norm(f"{root}.ln_f", width),
        "to_latents": reader.linear(f"{root}.head", width, channels),
    }


def _check_positions(reader: Converter, name: str, sizes: ViTSizes, grid: tuple[int, ...]) -> None:
    """Notes a problem unless the file's table is the one that the network computes."""
    before, table = len(reader.problems), fixed_positions(sizes.positions, grid, sizes.width)
    same = np.allclose(reader.take(name, (1, *table.shape))[0], table, atol=1e-3)
    if len(reader.problems) == before and not same:
        reader.problems.append(f"{name} is not positions = {sizes.positions!r}")


def convert(state: dict[str, np.ndarray], model: Autoencoder) -> dict:
    """Official entries -> parameters {encoder, decoder, quantizer} of a LARP's autoencoder.

    Raises:
      ConfigError: the config is of another network, or entries are missing, unknown or mis-shaped.
    """
    enc, dec, bottleneck = model.encoder_sizes, model.decoder_sizes, model.bottleneck
    fits = isinstance(bottleneck, PriorVQ) and all(
        isinstance(s, ViTSizes) and s.positions == "sincos_sum" and s.registers for s in (enc, dec)
    )
    check(fits, "tokenizer", model.where, "a released size of configs/larp.py")
    reader, image = Converter(state, "LARP's tokenizer"), model.image_shape[-1]
    channels, patch = bottleneck.channels, enc.patch
    _check_positions(reader, "encoder_patch_pe", enc, enc.patches(model.image_shape))
    _check_positions(reader, "decoder_patch_query_embed", dec, dec.patches(model.image_shape))
    _check_positions(reader, "decoder_latent_pe", dec, (dec.registers,))
    kernel = reader.take("x_embedder.proj.weight", (enc.width, image, *patch))
    kernel = kernel.transpose(2, 3, 4, 1, 0).reshape(-1, enc.width) / 2
    bias = reader.take("x_embedder.proj.bias", (enc.width,)) + kernel.sum(0)
    encoder = {
        "patch_embed": {"kernel": kernel, "bias": bias},
        "registers": reader.take("encoder_latent_query_embed", (enc.registers, enc.width)),
        "trunk": _trunk(reader, "encoder", enc),
        "to_latents": reader.linear("bottleneck.in_linear", enc.width, channels),
    }
    mask = reader.take("decoder_patch_query_token_type_embed", (1, 1, dec.width))
    pixels = reader.linear("final_layer.linear", dec.width, image * int(np.prod(dec.patch)))
    decoder = {
        "from_latents": reader.linear("bottleneck.out_linear", channels, dec.width),
        "mask_token": mask[0],
        "trunk": _trunk(reader, "decoder", dec),
        "norm_out": reader.norm("final_layer.norm_final", dec.width),
        "to_patches": {"kernel": 2 * pixels["kernel"], "bias": 2 * pixels["bias"] - 1},
    }
    rows = reader.take("bottleneck.regularizer.embedding.weight", (bottleneck.size, channels))
    quantizer = {
        "embedding": rows,
        "prior": _prior(reader, bottleneck),
        "seen": np.float32(bottleneck.ramp),
    }
    return reader.finish({"encoder": encoder, "decoder": decoder, "quantizer": quantizer})

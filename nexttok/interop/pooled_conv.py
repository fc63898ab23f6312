"""MaskGIT's and GIVT's tokenizers in: google-research/maskgit, maskgit/nets/vqgan_tokenizer.py, and
the ImageNet VAEs of google-research/big_vision, models/proj/givt/cnn.py (flax).

One network (nn/networks/pooled_conv.py) whose layers flax has numbered in the order in which they
run.
"""

import itertools

import numpy as np

from nexttok.config import check
from nexttok.interop.blocks import flax_layer, flax_norm
from nexttok.interop.checkpoints import Converter
from nexttok.interop.releases import Release
from nexttok.nn.networks.conv import ConvConfig
from nexttok.nn.networks.pooled_conv import PooledConfig
from nexttok.tokenizers import autoencoder

MASKGIT = tuple(
    Release(
        f"{side} x {side}", f"tokenizer_imagenet{side}_checkpoint",
        "https://storage.googleapis.com/maskgit-public/checkpoints", (f"maskgit:imagenet{side}",),
    )
    for side in (256, 512)
)  # fmt: skip
GIVT = (
    Release(
        "beta 5e-5", "vae_imagenet_2012_beta_5e-5_params",
        "https://storage.googleapis.com/big_vision/givt",
        ("givt:imagenet256", "givt:imagenet256_masked", "givt:imagenet512_masked"),
    ),
    Release(
        "beta 1e-5", "vae_imagenet_2012_beta_1e-5_params",
        "https://storage.googleapis.com/big_vision/givt", ("givt:imagenet256_large",),
    ),
)  # fmt: skip


def _linear(reader, name, inputs, outputs, bias=True):
    """A 1 x 1 convolution as a linear layer."""
    layer = flax_layer(reader, name, 1, 1, inputs, outputs, bias=bias)
    return layer | {"kernel": layer["kernel"].reshape(inputs, outputs)}


def _block(reader, name, inputs, outputs):
    def conv(i, width):
        return flax_layer(reader, f"{name}/Conv_{i}", 3, 3, width, outputs, bias=False)

    params = {
        "norm1": flax_norm(reader, f"{name}/GroupNorm_0", inputs),
        "conv1": conv(0, inputs),
        "norm2": flax_norm(reader, f"{name}/GroupNorm_1", outputs),
        "conv2": conv(1, outputs),
    }
    if inputs != outputs:
        params["out"] = _linear(reader, f"{name}/Conv_2", outputs, outputs, bias=False)
    return params


def _level(reader, numbers, root, count, inputs, outputs):
    """The next `count` residual blocks of the network under `root`."""
    widths = (inputs, *[outputs] * count)
    return {
        f"res{j}": _block(reader, f"{root}/ResBlock_{next(numbers)}", widths[j], outputs)
        for j in range(count)
    }


def _encoder(reader: Converter, config: ConvConfig, channels: int, image: int) -> dict:
    """Parameters of nn.networks.pooled_conv.Encoder from `encoder/*`."""
    numbers, width = itertools.count(), config.width
    params = {"conv_in": flax_layer(reader, "encoder/Conv_0", 3, 3, image, width, bias=False)}
    for i, m in enumerate(config.multipliers):
        outputs = config.width * m
        params[f"level{i}"] = _level(reader, numbers, "encoder", config.blocks, width, outputs)
        width = outputs
    return params | {
        "middle": _level(reader, numbers, "encoder", config.blocks, width, width),
        "norm": flax_norm(reader, "encoder/GroupNorm_0", width),
        "out": _linear(reader, "encoder/Conv_1", width, channels),
    }


def _decoder(reader: Converter, config: ConvConfig, latent: int, image: int) -> dict:
    """Parameters of nn.networks.pooled_conv.Decoder from `decoder/*`."""
    numbers, levels = itertools.count(), len(config.multipliers)
    width = config.width * config.multipliers[-1]

    def conv(i, inputs, outputs):
        return flax_layer(reader, f"decoder/Conv_{i}", 3, 3, inputs, outputs)

    params = {
        "conv_in": conv(0, latent, width),
        "middle": _level(reader, numbers, "decoder", config.blocks, width, width),
    }
    for i in reversed(range(levels)):
        outputs = config.width * config.multipliers[i]
        params[f"level{i}"] = _level(reader, numbers, "decoder", config.blocks, width, outputs)
        width = outputs
        if i > 0:
            params[f"conv_up{i}"] = conv(levels - i, width, width)
    norm = flax_norm(reader, "decoder/GroupNorm_0", width)
    return params | {"norm": norm, "conv_out": conv(levels, width, image)}


def convert(
    state: dict[str, np.ndarray], section, image_shape: tuple[int, ...] = (256, 256, 3)
) -> dict:
    """Official entries -> parameters {encoder, decoder[, quantizer]} of tokenizers.autoencoder.

    Args:
      state: flat entries of the flax tree, named by '/'-joined paths.
      section: the config section that the parameters are for.
      image_shape: of its pictures.

    Raises:
      ConfigError: the section is wrong or of another network, or entries are missing, unknown or
        mis-shaped.
    """
    model = autoencoder.make(section, image_shape)
    sizes = model.encoder_sizes, model.decoder_sizes
    for part, found in zip(("encoder", "decoder"), sizes, strict=True):
        allowed = "'pooled_conv', the network of this checkpoint"
        check(isinstance(found, PooledConfig), f"{model.where}.{part}.name",
              section[part].name, allowed)  # fmt: skip
    reader, codes = Converter(state, "tokenizer checkpoint"), model.bottleneck
    image = model.image_shape[-1]
    params = {
        "encoder": _encoder(reader, sizes[0], codes.inputs, image),
        "decoder": _decoder(reader, sizes[1], codes.channels, image),
    }
    if model.spec.vocab:
        rows = reader.take("quantizer/codebook", (model.spec.vocab, codes.channels))
        params["quantizer"] = {"embedding": rows}
    return reader.finish(params)

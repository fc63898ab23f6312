"""BiGR's binary autoencoder in (haoosz/BiGR, bae/binaryae.py): entries `ae.*` of its EMA files.

Its encoder and its generator are each one list of blocks, counted from 0.
"""

import itertools

import numpy as np

from nexttok.config import check
from nexttok.interop.checkpoints import Converter
from nexttok.interop.releases import HUB, Release
from nexttok.interop.vqgan import convert_attention
from nexttok.nn.networks.bigr import BigrConfig
from nexttok.tokenizers.autoencoder import Autoencoder

RELEASES = tuple(
    Release(f"d{bits}", f"bae/bae_d{bits}/binaryae_ema_{steps}.th", f"{HUB}/haoosz/BiGR",
            (f"bigr:imagenet256_d{bits}",))
    for bits, steps in ((24, 1_000_000), (32, 950_000))
)  # fmt: skip

PREFIX = "ae."


class _List:
    """Reads one list of blocks from its start to its end; knows the width it has come to."""

    def __init__(self, reader: Converter, name: str, config: BigrConfig, width: int):
        self.reader, self.config, self.width = reader, config, width
        self.names = (f"{name}.blocks.{i}" for i in itertools.count())

    def conv(self, outputs: int, inner: str = "") -> dict:
        """A 3 x 3 convolution."""
        inputs, self.width = self.width, outputs
        return self.reader.conv(next(self.names) + inner, inputs, outputs)

    def norm(self) -> dict:
        """A normalization."""
        return self.reader.norm(next(self.names), self.width)

    def res(self, outputs: int) -> dict:
        """A residual block, whose shortcut is not used where the width stays."""
        name, inputs = next(self.names), self.width
        params = {
            "norm1": self.reader.norm(f"{name}.norm1", inputs),
            "conv1": self.reader.conv(f"{name}.conv1", inputs, outputs),
            "norm2": self.reader.norm(f"{name}.norm2", outputs),
            "conv2": self.reader.conv(f"{name}.conv2", outputs, outputs),
        }
        shortcut = self.reader.linear(f"{name}.conv_out", inputs, outputs, ones=2)
        self.width = outputs
        return params | ({"out": shortcut} if inputs != outputs else {})

    def attention(self) -> dict:
        """Attention over positions."""
        return convert_attention(self.reader, next(self.names), self.width)

    def level(self, i: int) -> dict:
        """Residual blocks of a level, with attention where it has any."""
        params, outputs = {}, self.config.width * self.config.multipliers[i]
        for j in range(self.config.blocks):
            params[f"res{j}"] = self.res(outputs)
            if i in self.config.attention:
                params[f"attn{j}"] = self.attention()
        return params

    def middle(self) -> dict:
        """Residual block, attention, residual block."""
        return {
            "res0": self.res(self.width),
            "attn": self.attention(),
            "res1": self.res(self.width),
        }


def _encoder(reader, config, image, bits):
    layers, levels = _List(reader, "encoder", config, image), len(config.multipliers)
    params = {"conv_in": layers.conv(config.width)}
    for i in range(levels):
        params[f"level{i}"] = layers.level(i)
        if i < levels - 1:
            params[f"conv_down{i}"] = layers.conv(layers.width, ".conv")
    params["middle"] = layers.middle()
    params |= {"norm": layers.norm(), "conv_out": layers.conv(config.z_channels)}
    return params | {"out": reader.linear("quantize.proj.0", config.z_channels, bits, ones=2)}


def _decoder(reader, config, image):
    layers = _List(reader, "generator", config, config.z_channels)
    params = {"norm_in": layers.norm()}
    params["conv_in"] = layers.conv(config.width * config.multipliers[-1])
    params["middle"] = layers.middle()
    for i in reversed(range(len(config.multipliers))):
        params[f"level{i}"] = layers.level(i)
        if i > 0:
            params[f"conv_up{i}"] = layers.conv(layers.width, ".conv")
    return params | {"norm": layers.norm(), "conv_out": layers.conv(image)}


def convert(state: dict[str, np.ndarray], model: Autoencoder) -> dict:
    """Official entries -> parameters {encoder, decoder, quantizer} of a BiGR's autoencoder.

    The decoder's unused estimate of its own error (`generator.logsigma`), the discriminator and the
    perceptual network are not used.

    Raises:
      ConfigError: the config is of another network, or entries are missing, unknown or mis-shaped.
    """
    sizes, codes = (model.encoder_sizes, model.decoder_sizes), model.bottleneck
    fits = all(isinstance(s, BigrConfig) for s in sizes) and codes.channels == sizes[1].z_channels
    check(fits, "tokenizer", model.where, "a released size of configs/bigr.py")
    whole = any(name.startswith(PREFIX) for name in state)
    state = {k.removeprefix(PREFIX): v for k, v in state.items() if not whole or PREFIX in k}
    reader, image = Converter(state, "BiGR's binary autoencoder"), model.image_shape[-1]
    reader.ignore(r"generator\.logsigma\.")
    rows = reader.take("quantize.embed.weight", (codes.bits, codes.channels))
    params = {
        "encoder": _encoder(reader, sizes[0], image, codes.bits),
        "decoder": _decoder(reader, sizes[1], image),
        "quantizer": {"project": {"kernel": rows}},
    }
    return reader.finish(params)

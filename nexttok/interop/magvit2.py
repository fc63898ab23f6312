"""Next Block Prediction's video tokenizer in: RenShuhuai-Andy/NBP, nbp/magvit2.py.

Its encoder and its decoder are each one list of layers, counted from 0: residual blocks among
convolutions, normalizations, activations and reshapings.
"""

import itertools

import numpy as np

from nexttok.config import check
from nexttok.interop.checkpoints import Converter
from nexttok.interop.releases import HUB, Release
from nexttok.nn.networks.magvit2 import CausalConfig
from nexttok.tokenizers.autoencoder import Autoencoder

RELEASES = tuple(
    Release(
        data, f"magvit2_{data}.pt", f"{HUB}/ShuhuaiRen/NBP-tokenizer-{data}",
        (f"nbp:{data}_base", f"nbp:{data}_3b"),
    )
    for data in ("ucf", "k600")
)  # fmt: skip


def convert(state: dict[str, np.ndarray], tokenizer: Autoencoder) -> dict:
    """Parameters {encoder, decoder}.

    Raises:
      ConfigError: listing missing, unknown and mis-shaped entries.
    """
    sizes = tokenizer.encoder_sizes, tokenizer.decoder_sizes
    for part, found in zip(("encoder", "decoder"), sizes, strict=True):
        fits = isinstance(found, CausalConfig)
        check(fits, f"tokenizer.{part}.name", type(found).__name__, "'magvit2', as in this file")
    reader = Converter(state, "NBP's video tokenizer")
    codes, pixels = tokenizer.spec.channels, tokenizer.image_shape[-1]
    encoder = _encoder(_List(reader, "encoder_layers", sizes[0]), pixels, codes)
    decoder = _decoder(_List(reader, "decoder_layers", sizes[1]), pixels, codes)
    return reader.finish({"encoder": encoder, "decoder": decoder})


class _List:
    """Reads one list of layers from its start to its end; knows the width it has come to."""

    def __init__(self, reader: Converter, name: str, config: CausalConfig):
        self.reader, self.config, self.width = reader, config, 0
        self.names = (f"{name}.{i}" for i in itertools.count())

    def skip(self) -> None:
        """A layer without parameters."""
        next(self.names)

    def conv(self, inputs: int, outputs: int) -> dict:
        self.width = outputs
        return _conv(self.reader, next(self.names), inputs, outputs)

    def linear(self, outputs: int) -> dict:
        return self.reader.linear(next(self.names), self.width, outputs, ones=3)

    def swish(self) -> dict:
        return _swish(self.reader, next(self.names), next(self.names), self.width)

    def level(self, features: int) -> dict:
        """Residual blocks, the first of which may change the width."""
        params = {}
        for i in range(self.config.blocks):
            name, widths = next(self.names), (self.width, features)
            for j, width in enumerate(widths):
                parts = [f"{name}.fn.{3 * j + k}" for k in range(3)]
                params[f"in{i}_{j + 1}"] = _swish(self.reader, *parts[:2], width)
                params[f"conv{i}_{j + 1}"] = _conv(self.reader, parts[2], width, features)
            if self.width != features:
                short = f"{name}.residual_fn.0.conv"
                params["out"] = self.reader.linear(short, self.width, features, ones=3)
            self.width = features
        return params


def _conv(reader, name, inputs, outputs):
    """Windows of frames are channels here: [rows, columns, frames x in, out]."""
    kernel = reader.take(f"{name}.conv.weight", (outputs, inputs, 3, 3, 3))
    kernel = kernel.transpose(3, 4, 2, 1, 0).reshape(3, 3, 3 * inputs, outputs)
    return {"conv": {"kernel": kernel, "bias": reader.take(f"{name}.conv.bias", (outputs,))}}


def _swish(reader, norm, activation, width):
    slope = reader.take(f"{activation}.beta", (1, width, 1, 1, 1))
    return {"norm": reader.norm(norm, width), "scale": slope.reshape(-1)}


def _encoder(layers, pixels, codes):
    c = layers.config
    params = {"conv_in": layers.conv(pixels, c.width * c.multipliers[0])}
    for i, m in enumerate(c.multipliers):
        params[f"level{i}"] = layers.level(c.width * m)
        if i < len(c.cells):
            params[f"conv_down{i}"] = layers.conv(layers.width, layers.width)
    params["middle"] = layers.level(layers.width)
    params["last"] = layers.swish()
    return params | {"out": layers.linear(codes)}


def _decoder(layers, pixels, codes):
    c = layers.config
    params = {"conv_in": layers.conv(codes, c.width * c.multipliers[-1])}
    params["middle"] = layers.level(layers.width)
    for i in reversed(range(len(c.multipliers))):
        params[f"level{i}"] = layers.level(c.width * c.multipliers[i])
        if i > 0:
            width = layers.width
            params[f"conv_up{i}"] = layers.conv(width, width * int(np.prod(c.cells[i - 1])))
            layers.width = width
            layers.skip()
    params["last"] = layers.swish()
    return params | {"conv_out": layers.conv(layers.width, pixels)}

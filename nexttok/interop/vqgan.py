"""Convolutional tokenizers in: LlamaGen, latent diffusion, MAR's kl16 and VAR's autoencoder.

They are one network (nn/networks/conv.py) under three sets of names:
  llamagen   conv_blocks.i.{res,attn}.j, mid.{0,1,2}; the decoder's blocks deepest first.
  taming     down.i | up.i .{block,attn}.j, mid.{block_1,attn_1,block_2} (CompVis, LTH14/mar).
  var        taming's with queries, keys and values in one convolution, qkv.
"""

import dataclasses

import numpy as np

from nexttok.config import check
from nexttok.interop.checkpoints import Converter
from nexttok.interop.releases import HUB, Release
from nexttok.nn.networks.conv import ConvConfig
from nexttok.tokenizers import autoencoder
from nexttok.tokenizers.autoencoder import Autoencoder

LLAMAGEN = (
    Release(
        "ds16", "vq_ds16_c2i.pt", f"{HUB}/FoundationVision/LlamaGen",
        (
            *(f"llamagen:imagenet256_{size}" for size in ("b", "l", "xl", "xxl")),
            *(f"llamagen:imagenet384_{size}" for size in ("b", "l", "xl", "xxl", "3b")),
            *(f"{paper}:imagenet256_{size}" for paper in ("randar", "arpg")
              for size in ("l", "xl", "xxl")),
        ),
    ),
)  # fmt: skip
MAR = (
    Release(
        "KL-16", "kl16.ckpt",
        "https://www.dropbox.com/scl/fi/hhmuvaiacrarfg28qxhwz/kl16.ckpt"
        "?rlkey=l44xipsezc8atcffdp4q7mwmh&dl=0",
        tuple(f"{paper}:imagenet256_{size}" for paper in ("mar", "xar") for size in "blh"),
    ),
)  # fmt: skip

LAYOUTS = ("llamagen", "taming", "var")
ROOTS = ("ema", "model_ema", "model", "state_dict")  # where the released files keep them


def layout_of(state: dict[str, np.ndarray]) -> str:
    """Which of LAYOUTS the entries are named by."""
    if any(".conv_blocks." in name for name in state):
        return "llamagen"
    return "var" if any(name.endswith(".qkv.weight") for name in state) else "taming"


@dataclasses.dataclass(frozen=True)
class _Names:
    """Entry names of one network under `root`, by layout."""

    root: str
    layout: str
    levels: int
    up: bool

    def level(self, i: int) -> str:
        """Level i, 0 at full resolution."""
        if self.layout == "llamagen":
            return f"{self.root}conv_blocks.{self.levels - 1 - i if self.up else i}"
        return f"{self.root}{'up' if self.up else 'down'}.{i}"

    def res(self, i: int, j: int) -> str:
        """Residual block j of level i."""
        return f"{self.level(i)}.{'res' if self.layout == 'llamagen' else 'block'}.{j}"

    def middle(self, attention: bool) -> list[str]:
        """The middle's residual block, attention if there is any, residual block."""
        parts = ("block_1", *["attn_1"] * attention, "block_2")
        numbered = self.layout == "llamagen"
        return [f"{self.root}mid.{i if numbered else part}" for i, part in enumerate(parts)]


def _res(reader, name, inputs, outputs):
    params = {
        "norm1": reader.norm(f"{name}.norm1", inputs),
        "conv1": reader.conv(f"{name}.conv1", inputs, outputs),
        "norm2": reader.norm(f"{name}.norm2", outputs),
        "conv2": reader.conv(f"{name}.conv2", outputs, outputs),
    }
    if inputs != outputs:
        params["out"] = reader.linear(f"{name}.nin_shortcut", inputs, outputs, ones=2)
    return params


def convert_attention(
    reader: Converter, name: str, channels: int, layout: str = "taming"
) -> dict[str, dict]:
    """{wq, wk, wv, norm, proj} of attention over positions."""

    def dense(part, outputs=channels):
        return reader.linear(f"{name}.{part}", channels, outputs, ones=2)

    if layout == "var":
        fused = {k: np.split(v, 3, axis=-1) for k, v in dense("qkv", 3 * channels).items()}
        qkv = [{k: v[i] for k, v in fused.items()} for i in range(3)]
    else:
        qkv = [dense(part) for part in "qkv"]
    params = dict(zip(("wq", "wk", "wv"), qkv, strict=True))
    return params | {"norm": reader.norm(f"{name}.norm", channels), "proj": dense("proj_out")}


def _level(reader, names, config, i, inputs, blocks):
    channels, params = config.width * config.multipliers[i], {}
    for j in range(blocks):
        params[f"res{j}"] = _res(reader, names.res(i, j), inputs, channels)
        if i in config.attention:
            name = f"{names.level(i)}.attn.{j}"
            params[f"attn{j}"] = convert_attention(reader, name, channels, names.layout)
        inputs = channels
    return params


def _middle(reader, names, config, channels):
    first, *attention, last = names.middle(config.middle_attention)
    params = {
        "res0": _res(reader, first, channels, channels),
        "res1": _res(reader, last, channels, channels),
    }
    for name in attention:
        params["attn"] = convert_attention(reader, name, channels, names.layout)
    return params


def _quantization(reader, name, config, inputs, outputs):
    if not config.quantized:
        return {}
    if config.quant_kernel == 1:
        return {"out": reader.linear(name, inputs, outputs, ones=2)}
    return {"conv_quant": reader.conv(name, inputs, outputs)}


def convert_encoder(
    reader: Converter, prefix: str, config: ConvConfig, layout: str, channels: int, image: int = 3
) -> dict:
    """Parameters of nn.networks.conv.Encoder from `<prefix>encoder.*` and `<prefix>quant_conv.*`.

    Args:
      reader: keeps accounts of what is missing and left over.
      prefix: in front of every name, "" for none.
      config: sizes of the network.
      layout: one of LAYOUTS.
      channels: the network's outputs, twice the latent's under a KL bottleneck.
      image: channels of a picture.
    """
    levels, width = len(config.multipliers), config.width
    names = _Names(f"{prefix}encoder.", layout, levels, up=False)
    params, inputs = {"conv_in": reader.conv(f"{names.root}conv_in", image, width)}, width
    for i, m in enumerate(config.multipliers):
        params[f"level{i}"] = _level(reader, names, config, i, inputs, config.blocks)
        inputs = width * m
        if i < levels - 1:
            name = f"{names.level(i)}.downsample.conv"
            params[f"conv_down{i}"] = reader.conv(name, inputs, inputs)
    hidden = config.z_channels or channels
    return params | {
        "middle": _middle(reader, names, config, inputs),
        "norm": reader.norm(f"{names.root}norm_out", inputs),
        "conv_out": reader.conv(f"{names.root}conv_out", inputs, hidden),
        **_quantization(reader, f"{prefix}quant_conv", config, hidden, channels),
    }


def convert_decoder(
    reader: Converter, prefix: str, config: ConvConfig, layout: str, channels: int, image: int = 3
) -> dict:
    """Parameters of networks.conv.Decoder: `<prefix>decoder.*` and `<prefix>post_quant_conv.*`.

    As `convert_encoder`; `channels` are the latent's.
    """
    levels, hidden = len(config.multipliers), config.z_channels or channels
    inputs = config.width * config.multipliers[-1]
    names = _Names(f"{prefix}decoder.", layout, levels, up=True)
    params = _quantization(reader, f"{prefix}post_quant_conv", config, channels, hidden)
    params["conv_in"] = reader.conv(f"{names.root}conv_in", hidden, inputs)
    params["middle"] = _middle(reader, names, config, inputs)
    for i in reversed(range(levels)):
        if config.restyled:
            heads = {"scale": "gamma", "shift": "beta"}
            name = f"{names.root}adaptive.{levels - 1 - i}"
            params[f"restyle{i}"] = {
                ours: reader.linear(f"{name}.{theirs}", hidden, inputs)
                for ours, theirs in heads.items()
            }
        params[f"level{i}"] = _level(reader, names, config, i, inputs, config.blocks + 1)
        inputs = config.width * config.multipliers[i]
        if i > 0:
            name = f"{names.level(i)}.upsample.conv"
            name, times = (f"{name}1", 4) if config.shuffled else (name, 1)
            params[f"conv_up{i}"] = reader.conv(name, inputs, times * inputs)
    return params | {
        "norm": reader.norm(f"{names.root}norm_out", inputs),
        "conv_out": reader.conv(f"{names.root}conv_out", inputs, image),
    }


def convert_discriminator(
    reader: Converter, prefix: str, width: int, layers: int, image: int = 3
) -> dict:
    """Parameters of nn.discriminator.PatchGAN (norm "batch") from `<prefix>main.N.*`."""
    reader.ignore(rf"{prefix}main\.\d+\.(running_mean|running_var|num_batches_tracked)$")
    params = {"conv0": reader.conv(f"{prefix}main.0", image, width, 4)}
    inputs = width
    for i in range(1, layers + 1):
        outputs, at = width * min(2**i, 8), 3 * i - 1
        params[f"conv{i}"] = reader.conv(f"{prefix}main.{at}", inputs, outputs, 4, bias=False)
        params[f"norm{i}"] = reader.norm(f"{prefix}main.{at + 1}", outputs)
        inputs = outputs
    return params | {"conv_out": reader.conv(f"{prefix}main.{3 * layers + 2}", inputs, 1, 4)}


def networks(reader: Converter, model: Autoencoder, layout: str) -> dict:
    """Parameters {encoder, decoder} of a model of such networks.

    Raises:
      ConfigError: the model's networks are others.
    """
    sizes = model.encoder_sizes, model.decoder_sizes
    for part, found in zip(("encoder", "decoder"), sizes, strict=True):
        fits = type(found) is ConvConfig
        check(fits, f"{model.where}.{part}.name", type(found).__name__, "'conv', as in this file")
    image, latent = model.image_shape[-1], model.bottleneck.channels
    outputs = model.bottleneck.inputs
    return {
        "encoder": convert_encoder(reader, "", sizes[0], layout, outputs, image),
        "decoder": convert_decoder(reader, "", sizes[1], layout, latent, image),
    }


def convert(
    state: dict[str, np.ndarray], section, image_shape: tuple[int, ...] = (256, 256, 3)
) -> dict:
    """Official entries -> parameters {encoder, decoder, quantizer} of tokenizers.autoencoder.

    Losses kept in the file (`loss.*`) and usage counters (`quantize.codebook_used`) are not used.

    Args:
      state: a flat state dict, as of checkpoints.pick(read(path), *ROOTS).
      section: the config section that the parameters are for.
      image_shape: of its pictures.

    Raises:
      ConfigError: the section is wrong, or entries are missing, unknown or mis-shaped.
    """
    model = autoencoder.make(section, image_shape)
    reader = Converter(state, "tokenizer checkpoint")
    reader.ignore(r"loss\.|quantize\.codebook_used$")
    params = networks(reader, model, layout_of(state))
    if model.spec.vocab:
        shape = (model.spec.vocab, model.bottleneck.channels)
        params["quantizer"] = {"embedding": reader.take("quantize.embedding.weight", shape)}
    return reader.finish(params)

"""VAR's tokenizer (FoundationVision/VAR, vae_ch160v4096z32.pth) from a checkpoint's entries."""

import numpy as np

from nexttok.interop.checkpoints import Converter
from nexttok.interop.releases import HUB, Release
from nexttok.interop.vqgan import networks
from nexttok.tokenizers import autoencoder

SIZES = ("imagenet256_d16", "imagenet256_d20", "imagenet256_d24", "imagenet256_d30",
         "imagenet512_d36")  # fmt: skip
RELEASES = (
    Release(
        "ch160 v4096 z32", "vae_ch160v4096z32.pth", f"{HUB}/FoundationVision/var",
        tuple(f"var:{size}" for size in SIZES),
    ),
)  # fmt: skip


def convert(
    state: dict[str, np.ndarray], section, image_shape: tuple[int, ...] = (256, 256, 3)
) -> dict:
    """Official entries -> parameters {encoder, decoder, quantizer} of tokenizers.autoencoder.

    The usage counters (`quantize.ema_vocab_hit_SV`) are not used.

    Args:
      state: a flat state dict, as of checkpoints.pick(read(path)).
      section: the config section that the parameters are for.
      image_shape: of its pictures.

    Raises:
      ConfigError: the section is wrong, or entries are missing, unknown or mis-shaped.
    """
    model = autoencoder.make(section, image_shape)
    reader = Converter(state, "VAR tokenizer checkpoint")
    reader.ignore(r"quantize\.ema_vocab_hit_SV$")
    params = networks(reader, model, "var")
    codes, phi = model.bottleneck, "quantize.quant_resi.qresi_ls"
    params["quantizer"] = {
        "embedding": reader.take("quantize.embedding.weight", (codes.size, codes.channels)),
        "phi": {
            f"conv{i}": reader.conv(f"{phi}.{i}", codes.channels, codes.channels)
            for i in range(codes.phis)
        },
    }
    return reader.finish(params)

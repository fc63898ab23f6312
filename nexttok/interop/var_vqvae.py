"""VAR's tokenizer (FoundationVision/VAR, vae_ch160v4096z32.pth) from a checkpoint's entries."""

import numpy as np

from nexttok.interop.checkpoints import Converter
from nexttok.interop.vqgan import convert_decoder, convert_encoder
from nexttok.tokenizers import multiscale


def convert(
    state: dict[str, np.ndarray], section, image_shape: tuple[int, ...] = (256, 256, 3)
) -> dict:
    """Official entries -> parameters {encoder, decoder, quantizer} of tokenizers.multiscale.

    The usage counters (`quantize.ema_vocab_hit_SV`) are not used.

    Args:
      state: a flat state dict, as of checkpoints.pick(read(path)).
      section: the config section that the parameters are for.
      image_shape: of its pictures.

    Raises:
      ConfigError: the section is wrong, or entries are missing, unknown or mis-shaped.
    """
    model = multiscale.make(section, image_shape)
    reader = Converter(state, "VAR tokenizer checkpoint")
    reader.ignore(r"quantize\.ema_vocab_hit_SV$")
    latent, image = model.latent_channels, model.image_shape[-1]
    phi = "quantize.quant_resi.qresi_ls"
    params = {
        "encoder": convert_encoder(reader, "", model.conv, "var", latent, image),
        "decoder": convert_decoder(reader, "", model.decoder_conv, "var", latent, image),
        "quantizer": {
            "embedding": reader.take("quantize.embedding.weight", (model.codebook_size, latent)),
            "phi": {
                f"conv{i}": reader.conv(f"{phi}.{i}", latent, latent) for i in range(model.phis)
            },
        },
    }
    return reader.finish(params)

"""NFIG: "Autoregressive Image Generation with Next-Frequency Prediction" (Huang et al., 2025).

    python -m nexttok.main --config=configs/nfig.py --workdir=runs/nfig

Variants (`--config=configs/nfig.py:<variant>`):
  digits   (default) maps of side 1, 2, 3, 4 of growing frequency, of scikit-learn's handwritten
           digits.
  tiny     the whole path, training to pictures, in about a minute.
  imagenet256
           ten bands of a 16 x 16 latent and a generator of 310 M parameters, VAR's d16.

The paper's code is not public: bands, resizing and losses are a reconstruction (see
nexttok/bottlenecks/multiscale.py); the rest is VAR's.
"""

from configs import common, var

VARIANTS = ("digits", "tiny", "imagenet256")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = var.get_config("imagenet256_d16" if variant == "imagenet256" else "digits")
    config.name = "nfig"
    config.tokenizer.bottleneck.resize = "spectral"
    if variant == "tiny":
        common.tiny(config)
    return config

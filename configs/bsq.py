"""BSQ: "Image and Video Tokenization with Binary Spherical Quantization" (Zhao et al., 2024).

    python -m nexttok.main --config=configs/bsq.py --workdir=runs/bsq

Variants (`--config=configs/bsq.py:<variant>`):
  digits   (default) 4 x 4 positions of 8 bits on a sphere, for scikit-learn's handwritten digits.
  lfq      the same, of signs without a sphere: lookup-free quantization ("Language Model Beats
           Diffusion: Tokenizer is Key to Visual Generation", Yu et al., 2023).
  photos   32 x 32 crops of photographs: 8 x 8 positions of 12 bits.
  tiny     seconds: the whole path.
  imagenet128
           BSQ-ViT: 128 x 128 pictures as 16 x 16 positions of 18 bits.
"""

from configs import common, tokenizers

VARIANTS = ("digits", "lfq", "photos", "tiny", "imagenet128")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("bsq")
    network = tokenizers.transformer((4, 4), 128, 4)
    bits = sphere(8)
    if variant == "lfq":
        bits |= dict(kind="lfq", beta=0.25)
    config.tokenizer = tokenizers.autoencoder(network, bits)
    if variant == "photos":
        tokenizers.photos(config)
        config.tokenizer = tokenizers.autoencoder(network, sphere(12))
    elif variant == "tiny":
        tokenizers.tiny(config)
    elif variant == "imagenet128":
        common.imagenet(config, 128)
        network = tokenizers.transformer(
            (8, 8), 768, 12, head_dim=64, norm_affine=True, bias=True, remat=True
        )
        config.tokenizer = tokenizers.autoencoder(network, sphere(18), **tokenizers.ADVERSARY)
    return config


def sphere(bits):
    """Unit signs, kept apart and in use by their entropies."""
    return dict(
        name="binary", kind="bsq", bits=bits, channels=bits, signed=False, entropy_weight=0.01,
        diversity=1.0, beta=0.0,
    )  # fmt: skip

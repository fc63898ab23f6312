"""GigaTok: "GigaTok: Scaling Visual Tokenizers to 3 Billion Parameters for Autoregressive Image
Generation" (Xiong et al., 2025).

    python -m nexttok.main --config=configs/gigatok.py --workdir=runs/gigatok

Variants (`--config=configs/gigatok.py:<variant>`):
  digits   (default) 32 unit codes of 256 in no grid, for scikit-learn's handwritten digits.
  photos   32 x 32 crops of photographs as 64 codes of 1,024.
  tiny     seconds: the whole path.
  imagenet256_ss | imagenet256_sb | imagenet256_bl | imagenet256_xl_xxl
           the released models: 256 unit codes of 16,384; encoder and decoder small (S), base (B),
           large (L), XL or XXL. Their decoders are aligned with DINOv2-B
           (--config.features.checkpoint).
  imagenet256_ss_2d | imagenet256_sb_2d | imagenet256_bl_2d
           the paper's comparison: the same latents on a map of 16 x 16.

    python -m nexttok.interop --system=gigatok --checkpoint=VQ_SB256.pt --out=runs/gigatok_sb

The released B-L exists with another discriminator, too, from step 80,000:
tokenizer.losses.discriminator = "dino", discriminator_checkpoint = "dino_deitsmall16_pretrain.pth".
"""

from configs import common, tokenizers

SIZES = {
    "s": (512, 6), "b": (768, 12), "l": (1024, 24), "xl": (1280, 36), "xxl": (1536, 48),
}  # fmt: skip
VARIANTS = (
    "digits", "photos", "tiny", "imagenet256_ss", "imagenet256_sb", "imagenet256_bl",
    "imagenet256_xl_xxl", "imagenet256_ss_2d", "imagenet256_sb_2d", "imagenet256_bl_2d",
)  # fmt: skip
PAIRS = {"ss": ("s", "s"), "sb": ("s", "b"), "bl": ("b", "l"), "xl_xxl": ("xl", "xxl")}


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("gigatok")
    config.tokenizer = tokenizers.autoencoder(network(), revived(), warm_start=100)
    config.train.tokenizer.update(steps=2000, batch_size=32)
    if variant == "photos":
        tokenizers.photos(config)
        config.tokenizer = tokenizers.autoencoder(
            network(tokens=64), revived(size=1024), warm_start=100
        )
    elif variant == "tiny":
        tokenizers.tiny(config)
        config.tokenizer = tokenizers.autoencoder(
            network(pixel_width=8, groups=4, z_channels=8, width=32, depth=1, head_dim=16),
            codes(size=64), warm_start=1,
        )  # fmt: skip
    elif variant != "digits":
        imagenet(config, *variant.removeprefix("imagenet256_").partition("_2d")[:2])
    return config


def network(**changes):
    """Convolutions of stride 4 around transformers of two blocks."""
    keys = dict(
        name="qformer", pixel_width=16, multipliers=(1, 2, 2), blocks=1, groups=8, z_channels=64,
        width=96, depth=2, head_dim=32, tokens=32, queries="levels", remat=False,
    )  # fmt: skip
    return keys | changes


def codes(**changes):
    """Unit codes trained by gradient, the encoder's rotated."""
    return tokenizers.codes(gradient="rotation", **changes)


def revived(**changes):
    """In a short training codes without use are drawn from the batch."""
    return codes(revive="random", revive_below=0.1, **changes)


def imagenet(config, pair, flat):
    """The released sizes, losses and optimizer."""
    common.imagenet(config)
    released = network(
        pixel_width=128, multipliers=(1, 1, 2, 2, 4), blocks=2, groups=32, z_channels=256,
        head_dim=64, tokens=0 if flat else 256, remat=True,
    )  # fmt: skip
    ours, theirs = (dict(zip(("width", "depth"), SIZES[s], strict=True)) for s in PAIRS[pair])
    largest = pair == "xl_xxl"
    config.tokenizer = tokenizers.autoencoder(
        released | ours, codes(size=16384, entropy_weight=0.005 if largest else 0.0), theirs,
        perceptual_weight=1.0, adversarial_weight=0.5, discriminator_start=20_000,
        align_weight=0.5, align_layer=2, warm_start=0 if largest else 15_000,
    )  # fmt: skip
    config.features.update(name="dinov2", preset="base_224", checkpoint="dinov2_vitb14.safetensors")
    config.train.tokenizer.update(
        steps=1_000_000, batch_size=128 if pair in ("ss", "sb") else 256,
        warmup=5_000 if largest else 0, final_learning_rate=1e-5, weight_decay=1e-4, b2=0.95,
        clip=10.0, ema=0.9999,
    )  # fmt: skip

"""TiTok: "An Image is Worth 32 Tokens for Reconstruction and Generation" (Yu et al., 2024).

    python -m nexttok.main --config=configs/titok.py --workdir=runs/titok

Variants (`--config=configs/titok.py:<variant>`):
  digits   (default) 16 codes of 256 in no grid, for scikit-learn's handwritten digits.
  photos   32 x 32 crops of photographs as 64 codes of 1,024.
  tiny     seconds: the whole path.
  imagenet256_l32 | imagenet256_b64 | imagenet256_s128
           the released models: 32, 64 or 128 unit codes of 4,096; the decoder names codes of
           MaskGIT's tokenizer, whose decoder draws the pixels.

    python -m nexttok.interop --system=titok --checkpoint=tokenizer_titok_l32.safetensors \\
        --out=runs/titok_l32

All variants train on pixels in one stage, as the authors' later models do (TA-TiTok: Kim et al.,
2025); the paper's first stage, whose targets are the codes of MaskGIT's tokenizer, is not here.
"""

from configs import common, tokenizers

SIZES = {"l32": (1024, 24, 32), "b64": (768, 12, 64), "s128": (512, 8, 128)}
VARIANTS = (
    "digits", "photos", "tiny", "imagenet256_l32", "imagenet256_b64", "imagenet256_s128",
)  # fmt: skip


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("titok")
    config.tokenizer = tokenizers.autoencoder(network((4, 4), 128, 4, 16), tokenizers.codes())
    if variant == "photos":
        tokenizers.photos(config)
        config.tokenizer = tokenizers.autoencoder(
            network((4, 4), 128, 4, 64), tokenizers.codes(size=1024)
        )
    elif variant == "tiny":
        tokenizers.tiny(config)
    elif variant != "digits":
        imagenet(config, *SIZES[variant.split("_")[1]])
    return config


def network(patch, width, depth, registers, **changes):
    """Registers beside a class vector, learned positions, CLIP's blocks."""
    return tokenizers.transformer(
        patch, width, depth, registers=registers, positions="learned", class_token=True,
        pre_norm=True, norm_affine=True, bias=True, activation="gelu", **changes,
    )  # fmt: skip


def imagenet(config, width, depth, registers):
    """The paper's sizes and optimizer."""
    common.imagenet(config)
    sizes = network((16, 16), width, depth, registers, head_dim=64, remat=True, scrambled=True)
    pixels = dict(
        name="proxy", codes=1024, code_channels=256, pixel_width=128, multipliers=(1, 1, 2, 2, 4),
        blocks=2, groups=32,
    )  # fmt: skip
    config.tokenizer = tokenizers.autoencoder(
        sizes, tokenizers.codes(channels=12, size=4096), pixels, perceptual_weight=1.1,
        adversarial_weight=0.1, discriminator_start=200_000, lecam_weight=0.001,
    )  # fmt: skip
    config.train.tokenizer.update(
        steps=650_000, batch_size=256, warmup=10_000, final_learning_rate=1e-5, weight_decay=1e-4,
        b2=0.99, ema=0.999,
    )  # fmt: skip

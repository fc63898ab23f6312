"""ViT-VQGAN: "Vector-quantized Image Modeling with Improved VQGAN" (Yu et al., 2021).

    python -m nexttok.main --config=configs/vit_vqgan.py --workdir=runs/vit_vqgan

Variants (`--config=configs/vit_vqgan.py:<variant>`):
  digits   (default) 4 x 4 unit codes of 256, for scikit-learn's handwritten digits.
  photos   32 x 32 crops of photographs: 8 x 8 unit codes of 512.
  tiny     seconds: the whole path.
  imagenet256_small | imagenet256_base | imagenet256_large
           the paper's sizes: patches of 8, 1,024 codes of 8,192, 32 channels each.

The paper's logit-Laplace loss is not here; its weights of the other losses are.
"""

from configs import common, tokenizers

SIZES = {"small": (512, 8, 64, 2048), "base": (768, 12, 64, 3072), "large": (1280, 32, 80, 5120)}
VARIANTS = (
    "digits", "photos", "tiny", "imagenet256_small", "imagenet256_base", "imagenet256_large",
)  # fmt: skip


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("vit_vqgan")
    network = tokenizers.transformer((4, 4), 128, 4)
    config.tokenizer = tokenizers.autoencoder(network, tokenizers.codes())
    if variant == "photos":
        tokenizers.photos(config)
        config.tokenizer.bottleneck.size = 512
    elif variant == "tiny":
        tokenizers.tiny(config)
    elif variant != "digits":
        imagenet(config, *SIZES[variant.split("_")[1]])
    return config


def imagenet(config, width, depth, head_dim, mlp_hidden):
    """The paper's sizes and weights of losses."""
    common.imagenet(config)
    network = tokenizers.transformer(
        (8, 8), width, depth, head_dim=head_dim, mlp_hidden=mlp_hidden, norm_affine=True, bias=True,
        remat=True,
    )  # fmt: skip
    config.tokenizer = tokenizers.autoencoder(
        network, tokenizers.codes(channels=32, size=8192), perceptual_weight=0.1,
        adversarial_weight=0.1,
    )  # fmt: skip
    config.train.tokenizer.update(
        steps=500_000, batch_size=256, warmup=50_000, final_learning_rate=5e-5, weight_decay=1e-4,
        b2=0.99,
    )  # fmt: skip

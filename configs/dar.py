"""The tokenizer of D-AR: Diffusion via Autoregressive Models (Gao et al., 2025).

    python -m nexttok.main --config=configs/dar.py --workdir=runs/dar

Variants (`--config=configs/dar.py:<variant>`):
  digits   (default) 32 unit codes of 256 in 8 groups, for scikit-learn's handwritten digits: each
           group denoises one stretch of the way from noise to a picture.
  photos   32 x 32 crops of photographs as 64 codes of 1,024.
  tiny     seconds: the whole path, a generator included.
  imagenet256
           the released tokenizer: 256 unit codes of 16,384 in 8 groups of 32.

    python -m nexttok.interop --system=dar --checkpoint=D-AR-tokenizer_v1.pt --out=runs/dar_v1

The adversary that the authors' code has and leaves off is not here.
"""

from configs import common, tokenizers

VARIANTS = ("digits", "photos", "tiny", "imagenet256")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("dar")
    config.tokenizer = tokenizer()
    # so small a picture shows through little noise: high noise levels leave it to the codes
    config.tokenizer.update(queries=32, shift=8.0)
    config.tokenizer.bottleneck.update(revive="anchor")
    config.train.tokenizer.update(steps=2100, batch_size=16)
    if variant == "photos":
        photos(config)
    elif variant == "tiny":
        tiny(config)
    elif variant == "imagenet256":
        imagenet(config)
    return config


def tokenizer():
    """16 patches on both sides, 8 groups of 2 codes; the digits have twice as many."""
    return common.section(
        name="dar",
        bottleneck=common.section(**tokenizers.codes()),
        queries=16,
        groups=8,
        query_rank=8,
        encoder_patch=4,
        encoder_width=128,
        encoder_depth=3,
        condition_width=128,
        condition_depth=2,
        decoder_patch=4,
        decoder_width=128,
        decoder_depth=4,
        head_dim=32,
        scale=0.6,  # of the data before noise is added
        shift=2.0,  # of noise levels, 1 for none
        flow_steps=8,
        perceptual_weight=0.5,
        perceptual_checkpoint="",  # LPIPS and VGG16 files; "" for a Laplacian pyramid
        align_weight=0.0,  # of the alignment loss to config.features
        align_layer=2,
        align_hidden=256,
        remat=False,
        unroll=1,
    )


def photos(config):
    """64 codes in 8 groups, pixels in patches of 4."""
    tokenizers.photos(config)
    config.tokenizer.update(queries=64)
    config.tokenizer.bottleneck.size = 1024
    config.train.tokenizer.update(steps=1000)


def tiny(config):
    """Narrow networks, 4 groups of 4."""
    common.tiny(config)
    config.stages = ("tokenizer", "generator")
    config.tokenizer.update(queries=16, groups=4, flow_steps=4, head_dim=16)
    for part in ("encoder", "condition", "decoder"):
        config.tokenizer.update({f"{part}_width": 32, f"{part}_depth": 1})


def imagenet(config):
    """The release, and its training script: 1,000 epochs at most."""
    common.imagenet(config)
    config.features.update(name="dinov2", preset="base_224", checkpoint="dinov2_vitb14.safetensors")
    config.tokenizer.bottleneck.update(size=16384, revive="none")
    config.tokenizer.update(
        queries=256, shift=2.0, encoder_patch=16, decoder_patch=8, head_dim=64, encoder_depth=8,
        condition_depth=8, decoder_depth=12, encoder_width=768, condition_width=768,
        decoder_width=768, align_weight=0.5, align_layer=7, align_hidden=2048, remat=True,
    )  # fmt: skip
    config.train.tokenizer.update(
        steps=2_500_000, batch_size=512, learning_rate=2e-4, schedule="constant", warmup=500,
        optimizer="adamw", b2=0.95, weight_decay=0.0, clip=1.0, ema=0.999,
    )  # fmt: skip

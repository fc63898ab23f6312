"""Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction (VAR, Tian
et al., 2024).

    python -m nexttok.main --config=configs/var.py --workdir=runs/var

Variants (`--config=configs/var.py:<variant>`):
  digits   (default) maps of side 1, 2, 3, 4 of scikit-learn's handwritten digits.
  tiny     the whole path, training to pictures, in under a minute.
  imagenet256_d16 | imagenet256_d20 | imagenet256_d24 | imagenet256_d30 | imagenet512_d36
           the released models (310 M, 600 M, 1.0 B, 2.0 B, 2.3 B) for ImageNet through TFDS.
"""

from configs import common, tokenizers

# adaLN gain, batch size, epochs, learning rate per 256 images and its last share
RECIPES = {
    16: (1e-3, 768, 200, 1e-4, 0.1),
    20: (1e-3, 768, 250, 1e-4, 0.1),
    24: (1e-4, 768, 350, 8e-5, 0.01),
    30: (1e-5, 1024, 350, 8e-5, 0.01),
    36: (5e-6, 768, 350, 8e-5, 0.01),
}
VARIANTS = (
    "digits", "tiny", "imagenet256_d16", "imagenet256_d20", "imagenet256_d24", "imagenet256_d30",
    "imagenet512_d36",
)  # fmt: skip


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = common.base()
    config.name = "var"
    config.tokenizer = tokenizers.multiscale()
    config.generator = generator(width=128, depth=4, head_dim=32)
    config.generator.backbone.dropout = 0.1
    common.digits(config)
    config.train.tokenizer.steps = 850
    config.train.generator.update(steps=750, optimizer="muon", learning_rate=3e-3)
    config.sample.update(guidance=2.0, guidance_shape="linear", guidance_clock="step")
    if variant == "tiny":
        common.tiny(config)
    elif variant.startswith("imagenet"):
        resolution, depth = variant.removeprefix("imagenet").split("_d")
        imagenet(config, int(resolution), int(depth))
    return config


def generator(width, depth, head_dim):
    """AdaLN transformer over scales; cosine attention with a learned temperature per head."""
    return common.section(
        plan=common.plan("scales"),
        context=common.section(name="upsample"),
        head=common.categorical(bias=True, init="third"),
        backbone=common.backbone(
            width=width, depth=depth, head_dim=head_dim, mlp_hidden=4 * width, norm_eps=1e-6,
            norm_affine=False, qk_norm="l2", bias=True, key_bias=False, mlp_bias=True,
            init="third", depth_scaled=True, adaln_gain=(1e-3, 0.5), embed_init="third",
            condition=("start", "adaln"), null_class=True, final_norm="adaln", dropout=0.0,
        ),
        class_dropout=0.1,
    )  # fmt: skip


def imagenet(config, resolution, depth):
    """Width 64 x depth, heads of 64; the tokenizer vae_ch160v4096z32.

    The release raises weight decay along a cosine to 0.08 for d30 and d36; here it stays at 0.05.
    """
    common.imagenet(config, resolution)
    large = resolution == 512
    sides = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32) if large else (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    config.tokenizer = tokenizers.multiscale_f16(sides)
    config.generator = generator(width=64 * depth, depth=depth, head_dim=64)
    gain, batch, epochs, rate, last = RECIPES[depth]
    steps = epochs * 1_281_167 // batch
    config.generator.backbone.update(
        adaln_gain=(gain, 0.5), adaln_shared=large, drop_path=0.1 * depth / 24, remat=True
    )
    config.sample.update(guidance=2.5, top_k=900, top_p=0.96)
    config.train.generator.update(
        steps=steps, warmup=steps // 50, batch_size=batch, optimizer="adamw",
        learning_rate=rate * batch / 256, final_learning_rate=last * rate * batch / 256,
        schedule="linear", clip=2.0, ema=0.0,
    )  # fmt: skip

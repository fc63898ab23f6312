"""GIVT: Generative Infinite-Vocabulary Transformers (Tschannen et al., 2023).

    python -m nexttok.main --config=configs/givt.py --workdir=runs/givt

Variants (`--config=configs/givt.py:<variant>`):
  digits   (default) the causal model: 16 continuous tokens of handwritten digits, one by one.
  masked   the masked model: the same tokens in 8 steps, by confidence.
  tiny     the causal path, training to pictures, in under a minute.
  imagenet256 | imagenet256_masked | imagenet512_masked
           the released models (304 M each) on their beta-VAEs, for ImageNet through TFDS, 256 or
           1,024 tokens.
  imagenet256_large
           the paper's largest causal model (1.67 B), whose weights were not released.
"""

from configs import common, tokenizers

VARIANTS = (
    "digits", "masked", "tiny", "imagenet256", "imagenet256_masked", "imagenet512_masked",
    "imagenet256_large",
)  # fmt: skip


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = common.base()
    config.name = "givt"
    config.tokenizer = tokenizers.kl()
    config.generator = generator(masked=variant.endswith("masked"))
    common.digits(config)
    config.sample.update(guidance=1.4, temperature=0.95)
    if variant.endswith("masked"):
        config.sample.update(guidance=1.1, temperature=1.0, confidence=10.0)
    if variant == "tiny":
        common.tiny(config)
    elif variant.startswith("imagenet"):
        resolution, _, kind = variant.removeprefix("imagenet").partition("_")
        imagenet(config, int(resolution), kind == "masked", kind == "large")
    return config


def generator(masked=False, **sizes):
    """A pre-norm decoder without attention biases; the class is the first slot."""
    options = dict(
        norm_eps=1e-6, norm_bias=False, mlp_bias=True, start_vector=False, null_class=True,
        embed_init="normal1",
    )  # fmt: skip
    plan, context = common.plan("raster"), common.section(name="shift")
    if masked:
        plan = common.plan("confidence", steps=8, schedule="cosine")
        context = common.mask(floor=0.3)
        options |= dict(condition=("prefix",), prefix=1, concat_mask=True)
    return common.section(
        plan=plan,
        context=context,
        head=common.section(name="gmm", mixtures=16, halved=True),
        backbone=common.backbone(**(options | sizes)),
        class_dropout=0.1,
    )


def imagenet(config, resolution, masked, large):
    """The paper's sizes; Adam with b2 0.95, batches of 8,192 for 500 epochs."""
    common.imagenet(config, resolution)
    config.tokenizer = tokenizers.givt_f16(kl_weight=1e-5 if large else 5e-5)
    width, depth, hidden = (1536, 48, 8192) if large else (1024, 24, 4096)
    config.generator = generator(
        masked, width=width, depth=depth, head_dim=width // 16, mlp_hidden=hidden,
        dropout=0.4 if masked else 0.3 if large else 0.2,
        dropout_on=("weights", "attention", "hidden"), remat=True,
    )  # fmt: skip
    if masked:
        config.generator.plan.steps = 16
        config.sample.confidence = 35.0
        if resolution == 512:  # released without guidance
            config.sample.update(confidence=140.0, guidance=1.0)
    config.train.generator.update(
        steps=78_000, batch_size=8192, learning_rate=1e-3, weight_decay=0.0 if masked else 1e-4,
        warmup=7800, ema=0.0,
    )  # fmt: skip

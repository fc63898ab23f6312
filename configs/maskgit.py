"""MaskGIT: Masked Generative Image Transformer (Chang et al., 2022).

    python -m nexttok.main --config=configs/maskgit.py --workdir=runs/maskgit

Variants (`--config=configs/maskgit.py:<variant>`):
  digits   (default) 16 tokens of 256 ids in 8 steps for scikit-learn's handwritten digits.
  tiny     the whole path, training to pictures, in under a minute.
  imagenet256 | imagenet512
           the released tokenizer (54.5 M) and transformer (172.5 M), together the paper's 227 M,
           for ImageNet through TFDS.
"""

from configs import common, tokenizers

VARIANTS = ("digits", "tiny", "imagenet256", "imagenet512")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = common.base()
    config.name = "maskgit"
    config.tokenizer = tokenizers.vqgan()
    config.generator = generator()
    common.digits(config)
    config.sample.update(guidance=1.0, confidence=4.5)
    if variant == "tiny":
        common.tiny(config)
    elif variant.startswith("imagenet"):
        imagenet(config, int(variant.removeprefix("imagenet")))
    return config


def generator(**sizes):
    """BERT: norms after the sums, the class as a slot in front, logits from the embeddings."""
    options = dict(
        norm_eps=1e-12, post_norm=True, bias=True, mlp_bias=True, embed_norm="layer",
        final_norm="none", start_vector=False, condition=("prefix",), prefix=1,
        embed_init="normal02",
    )  # fmt: skip
    return common.section(
        plan=common.plan("confidence", steps=8, schedule="cosine"),
        context=common.mask(per_example=True),
        head=common.categorical(tied=True, smoothing=0.1),
        backbone=common.backbone(**(options | sizes)),
        class_dropout=0.0,
    )


def imagenet(config, resolution):
    """24 layers of width 768 with 16 heads; 1,024 codes, 16 x 16 or 32 x 32 tokens, no guidance."""
    common.imagenet(config, resolution)
    config.tokenizer = tokenizers.maskgit_f16()
    config.generator = generator(
        width=768, depth=24, head_dim=48, mlp_hidden=3072, remat=True,
        dropout_on=("embedding", "weights", "attention", "mlp"),
    )  # fmt: skip
    config.generator.plan.steps = 8 if resolution == 256 else 12
    config.train.generator.update(
        steps=2_000_000, batch_size=256, learning_rate=1e-4, weight_decay=0.045, b2=0.96,
        schedule="constant",
    )  # fmt: skip

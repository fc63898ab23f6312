"""Next Block Prediction: Video Generation via Semi-Autoregressive Modeling (Ren et al., 2025).

    python -m nexttok.main --config=configs/nbp.py --workdir=runs/nbp

Variants (`--config=configs/nbp.py:<variant>`):
  digits   (default) rows of 4 tokens a step for scikit-learn's handwritten digits.
  video    8 frames of 32 x 32 moving shapes: 4 x 4 x 4 tokens, the same rows a step.
  prediction
           the same clips continued: the first of 4 latent frames is given, a frame a step.
  tiny | tiny_video | tiny_prediction
           the whole path, training to pictures, in under a minute.
  ucf_base | ucf_3b
           the released models of UCF-101, drawn from the words of a class's name.
  k600_base | k600_3b
           the released models of Kinetics-600, which continue 5 given frames without a class.
  imagenet256_base | imagenet256_xl | imagenet256_3b
           the paper's transformers (700 M, 1.2 B, 3 B), rows of 16 tokens, for ImageNet.

Released weights come in whole, the video tokenizer's too. What is not here: the adversarial and
perceptual losses that it was trained with, and text other than the names of UCF-101's classes.

    python -m nexttok.interop --system=nbp --checkpoint=ucf_base_nbp16_hybrid.ckpt \\
        --config=configs/nbp.py:ucf_base --out=runs/ucf_base
    python -m nexttok.interop --system=nbp_tokenizer --checkpoint=magvit2_ucf.pt \\
        --config=configs/nbp.py:ucf_base --out=runs/ucf_base

Clips of either data set are read from class folders of animated pictures, 17 frames or longer each,
which --config.data.source=folder:<path> names.
"""

from configs import common, tokenizers

# width, depth, head_dim
SIZES = {"base": (1536, 24, 96), "xl": (2048, 24, 64), "3b": (3072, 32, 96)}
VARIANTS = (
    "digits", "video", "prediction", "tiny", "tiny_video", "tiny_prediction", "ucf_base", "ucf_3b",
    "k600_base", "k600_3b", "imagenet256_base", "imagenet256_xl", "imagenet256_3b",
)  # fmt: skip
SPECIAL, TEXT = 16, 32_000  # begin and fillers; LLaMA's vocabulary


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = common.base()
    config.name = "nbp"
    config.tokenizer = tokenizers.vqgan()
    config.generator = generator()
    common.digits(config)
    kind, _, size = variant.partition("_")
    if variant.endswith(("video", "prediction")):
        video(config)
    if variant.endswith("prediction"):
        prediction(config)
    if kind == "tiny":
        tiny(config)
    elif kind == "imagenet256":
        imagenet(config, *SIZES[size])
    elif kind == "ucf":
        ucf(config, *SIZES[size])
    elif kind == "k600":
        k600(config, *SIZES[size])
        config.train.generator.learning_rate = {"base": 1e-3, "3b": 2e-4}[size]
    return config


def generator(**sizes):
    """minGPT: the first row token by token behind class slots, then a row a step (hybrid NBP)."""
    options = dict(
        activation="gelu", bias=True, mlp_bias=True, condition=("prefix",), prefix=1,
        embed_init="normal02", null_class=True,
    )  # fmt: skip
    return common.section(
        plan=common.plan("rows", lead=True),
        context=common.section(name="block"),
        head=common.categorical(init="normal02"),
        backbone=common.backbone(**(options | sizes)),
        class_dropout=0.1,
    )


def pure(plan="rows", **sizes):
    """The same network without a class; the first step is given, so nothing starts it."""
    section = generator(condition=(), prefix=0, null_class=False, start_vector=False, **sizes)
    section.plan = common.plan(plan, given=1)
    section.class_dropout = 0.0
    return section


def video(config):
    """Moving shapes as codes of patches in space and time; a class is the kind of the large one."""
    tokenizers.shapes(config)
    config.tokenizer = tokenizers.video()
    config.cached_passes = 0  # of 50,000 clips each is seen once at most
    config.eval.classifier_steps = 160
    config.train.tokenizer.update(steps=550, batch_size=32, optimizer="muon", learning_rate=4e-3)
    config.train.generator.update(steps=850, batch_size=32, optimizer="muon", learning_rate=3e-3)


def prediction(config):
    """Frame after frame behind the first, without a class (pure NBP)."""
    config.generator = pure("frames")
    config.sample.guidance = 1.0


def tiny(config):
    """As everywhere; a video tokenizer has its own sizes."""
    common.tiny(config)
    if config.data.frames:
        config.tokenizer = tokenizers.videogpt(width=16, groups=4, stride=(4, 8, 8))
        config.cached_passes = 0


def imagenet(config, width, depth, head_dim):
    """The paper's sizes and its sampling, which guides nothing."""
    common.imagenet(config)
    config.tokenizer = tokenizers.vqgan_f16()
    config.generator = generator(**sized(width, depth, head_dim))
    config.sample.update(top_k=16_000, top_p=0.9, guidance=1.0)
    config.train.generator.update(learning_rate=6e-4, weight_decay=0.01, ema=0.0)


def sized(width, depth, head_dim):
    """Sizes of a backbone."""
    return dict(width=width, depth=depth, head_dim=head_dim, mlp_hidden=4 * width, remat=True)


def clips(config, source, classes):
    """17 frames of 128 x 128 as 5 x 16 x 16 tokens of 64,000; the paper's optimizer, sampling."""
    common.imagenet(config, 128)
    config.data.update(source=source, frames=17, num_classes=classes, augment="none")
    config.tokenizer = tokenizers.magvit2()
    config.sample.update(top_k=16_000, top_p=0.9, guidance=1.0)
    config.train.generator.update(weight_decay=0.01, ema=0.0)


def ucf(config, *size):
    """Hybrid NBP behind 8 words, in one vocabulary with begin, fillers and LLaMA's text."""
    clips(config, "folder:UCF-101", 101)
    config.generator = generator(prefix=8, prefix_words=True, **sized(*size))
    config.generator.head.reserved = SPECIAL + TEXT
    config.generator.class_dropout = 0.0
    config.train.generator.update(steps=100_000, batch_size=256, learning_rate=6e-4)


def k600(config, *size):
    """Pure NBP; of the 80 rows the first 32, two latent frames, are given in sampling."""
    clips(config, "folder:kinetics600", 600)
    config.generator = pure(**sized(*size))
    config.sample.given = 32
    config.train.generator.update(steps=4_000_000, batch_size=64, warmup=10_000)

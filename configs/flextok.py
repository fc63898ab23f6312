"""FlexTok: Resampling Images into 1D Token Sequences of Flexible Length (Bachmann et al., 2025).

    python -m nexttok.main --config=configs/flextok.py --workdir=runs/flextok

Variants (`--config=configs/flextok.py:<variant>`):
  digits   (default) 16 tokens of 1,000 ids for scikit-learn's handwritten digits.
  tiny     the whole path, training to pictures, in under a minute.
  photos   64 x 64 crops of photographs, an f4 autoencoder trained first.
  imagenet256_d12_d12 | imagenet256_d18_d18 | imagenet256_d18_d28
           the released tokenizers (256 tokens of 64,000 ids, f8 16-channel VAE) with the paper's
           class-conditional generator, for ImageNet prepared through TFDS.
"""

from configs import common

VARIANTS = (
    "digits",
    "tiny",
    "photos",
    "imagenet256_d12_d12",
    "imagenet256_d18_d18",
    "imagenet256_d18_d28",
)


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = common.base()
    config.name = "flextok"
    config.tokenizer = tokenizer()
    config.generator = generator()
    config.train.tokenizer.update(steps=1200, optimizer="muon", learning_rate=4e-3, ema=0.995)
    config.train.generator.update(steps=1000, batch_size=128, learning_rate=1e-3, ema=0.99)
    if variant == "tiny":
        tiny(config)
    elif variant == "photos":
        photos(config)
    elif variant.startswith("imagenet256"):
        imagenet(config, *variant.split("_")[1:])
    return config


def tokenizer():
    """The digits' tokenizer: 16 patches, 16 registers, 160 bits."""
    return common.section(
        name="flextok",
        registers=16,
        levels=(8, 5, 5, 5),
        patch=4,
        encoder_width=128,
        encoder_depth=3,
        decoder_width=128,
        decoder_depth=4,
        head_dim=32,
        keep="uniform_pow2",  # uniform | pow2 | uniform_pow2
        null_probability=0.1,
        noise="mode",  # uniform | mode | logit_normal
        mode_scale=0.25,
        align_weight=0.0,  # of the alignment loss to config.features
        align_layer=1,
        max_timestep=1.0,  # time t in [0, 1] enters the sine-cosine features as 1000 t / max_timestep
        flow_steps=20,
        solver="euler",
        guidance=1.5,
        guidance_rule="cfg",  # cfg | apg
        remat=False,
        unroll=1,
    )


def generator():
    """The digits' generator: next-token prediction over the 1D tokens, class on the start slot."""
    return common.section(
        name="ar",
        plan="raster",
        context="shift",
        head="categorical",
        width=128,
        depth=4,
        head_dim=32,
        norm="layer",
        qk_norm="none",
        dropout=0.1,
        drop_path=0.0,
        class_dropout=0.1,
        remat=False,
        unroll=1,
    )


def tiny(config):
    """Seconds per stage; the numbers mean little, the path is whole."""
    config.tokenizer.update(
        encoder_width=32, encoder_depth=1, decoder_width=32, decoder_depth=1, head_dim=16,
        registers=8, flow_steps=4,
    )  # fmt: skip
    config.generator.update(width=32, depth=1, head_dim=16)
    config.train.tokenizer.update(steps=60, batch_size=32, warmup=10, log_every=10, save_every=20)
    config.train.generator.update(steps=60, batch_size=32, warmup=10, log_every=10, save_every=20)
    config.eval.update(batch_size=50, images=50, samples=100, classifier_steps=60)
    config.sample.per_class = 4


def photos(config):
    """Tokens of an f4 autoencoder's latents, so that every stage of the paper is there."""
    config.data.update(
        source="photos", resolution=64, channels=3, num_classes=1, augment="none"
    )


def imagenet(config, encoder, decoder):
    """The released sizes; width is 64 x depth."""
    config.data.update(
        source="tfds:imagenet2012", resolution=256, channels=3, num_classes=1000, augment="crop_flip"
    )

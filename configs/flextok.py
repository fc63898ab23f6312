"""FlexTok: Resampling Images into 1D Token Sequences of Flexible Length (Bachmann et al., 2025).

    python -m nexttok.main --config=configs/flextok.py --workdir=runs/flextok

Variants (`--config=configs/flextok.py:<variant>`):
  digits   (default) 8 tokens of 1,600 ids for scikit-learn's handwritten digits.
  tiny     the whole path, training to pictures, in under a minute.
  photos   32 x 32 crops of photographs, an f4 autoencoder trained first.
  imagenet256_d12_d12 | imagenet256_d18_d18 | imagenet256_d18_d28
           the released tokenizers (256 tokens of 64,000 ids, f8 16-channel VAE) with the released
           class-conditional generator (26 layers of width 1,664), for ImageNet prepared through
           TFDS.
"""

from configs import common, tokenizers

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
    config.train.tokenizer.update(steps=1500, optimizer="muon", learning_rate=4e-3, ema=0.995)
    config.train.generator.update(steps=900, batch_size=128, learning_rate=1e-3, ema=0.99)
    if variant == "tiny":
        tiny(config)
    elif variant == "photos":
        photos(config)
    elif variant.startswith("imagenet256"):
        imagenet(config, *variant.split("_")[1:])
    return config


def tokenizer():
    """The digits' tokenizer: 16 patches, 8 registers, 85 bits."""
    return common.section(
        name="flextok",
        registers=8,
        levels=(8, 8, 5, 5),
        patch=4,
        positions="columns",  # first in the patches' position channels: columns | rows
        encoder_width=128,
        encoder_depth=3,
        decoder_width=128,
        decoder_depth=4,
        head_dim=32,
        keep="pow2",  # uniform | pow2 | uniform_pow2
        null_probability=0.1,
        noise="mode",  # uniform | mode | logit_normal
        mode_scale=0.25,
        align_weight=0.0,  # of the alignment loss to config.features
        align_layer=1,
        max_timestep=1.0,  # time t in [0, 1] enters its features as 1000 t / max_timestep
        flow_steps=16,
        solver="euler",
        guidance=2.0,
        guidance_rule="cfg",  # cfg | apg
        remat=False,
        unroll=1,
    )


def generator():
    """The digits' generator: next-token prediction over the 1D tokens, class on the start slot."""
    return common.section(
        plan=common.plan("raster"),
        context=common.section(name="shift"),
        head=common.categorical(),
        backbone=common.backbone(),
        class_dropout=0.1,
    )


def released_backbone(**sizes):
    """The transformer of flextok_ar over L3M. Its config.yaml, which lies beside the released
    weights, was not to be had: biases and the activation are those of L3M's language models and
    blocks; the width and depth are stated."""
    keys = dict(
        width=1664, depth=26, head_dim=64, mlp_hidden=6656, activation="gelu", norm_eps=1e-6,
        dropout=0.0,
    )  # fmt: skip
    return common.backbone(**(keys | sizes))


def tiny(config):
    """Seconds per stage; the numbers mean little, the path is whole."""
    config.tokenizer.update(
        encoder_width=32, encoder_depth=1, decoder_width=32, decoder_depth=1, head_dim=16,
        flow_steps=4,
    )  # fmt: skip
    config.generator.backbone.update(width=32, depth=1, head_dim=16, mlp_hidden=128)
    config.train.tokenizer.update(steps=60, batch_size=32, warmup=10, log_every=10, save_every=20)
    config.train.generator.update(steps=60, batch_size=32, warmup=10, log_every=10, save_every=20)
    config.eval.update(batch_size=50, images=50, samples=100, classifier_steps=60)
    config.sample.per_class = 4


def photos(config):
    """Tokens of an f4 autoencoder's latents, so that every stage of the paper is there."""
    config.stages = ("latent", "tokenizer", "generator")
    config.data.update(source="photos", resolution=32, channels=3, num_classes=1, augment="none")
    config.latent = tokenizers.kl()
    config.train.latent.update(steps=600, batch_size=32, optimizer="adamw", learning_rate=2e-3)
    config.tokenizer.update(registers=32, levels=(8, 8, 8, 5), patch=2, guidance=1.0)
    config.train.generator.update(steps=400, batch_size=64)
    config.eval.update(images=100, samples=200, classifier_steps=300)


def imagenet(config, encoder, decoder):
    """The released tokenizers: width 64 x depth, heads of 64; the class-conditional generator."""
    enc, dec = int(encoder[1:]), int(decoder[1:])
    config.stages = ("latent", "tokenizer", "generator")
    config.dtype = "bfloat16"
    config.data.update(
        source="tfds:imagenet2012", resolution=256, channels=3, num_classes=1000,
        augment="crop_flip", workers=16, prefetch=4,
    )  # fmt: skip
    config.features.update(name="dinov2", preset="large", checkpoint="dinov2_vitl14.safetensors")
    config.latent = autoencoder(channels=16)
    config.tokenizer.update(
        registers=256, levels=(8, 8, 8, 5, 5, 5), patch=2, positions="rows", keep="pow2",
        encoder_width=64 * enc, encoder_depth=enc, decoder_width=64 * dec, decoder_depth=dec,
        head_dim=64,
        align_weight=1.0, flow_steps=25, guidance=15.0 if enc == 12 else 7.5, guidance_rule="apg",
        remat=True,
    )  # fmt: skip
    config.generator.backbone = released_backbone(remat=True)
    config.sample.guidance = 1.5
    big = dict(batch_size=2048, learning_rate=5.6e-4, warmup=5000, log_every=100, save_every=5000)
    config.train.latent.update(big, steps=100_000, batch_size=256, learning_rate=1e-4)
    config.train.tokenizer.update(big, steps=390_000, optimizer="adamw", ema=0.999)  # 200 B tokens
    config.train.generator.update(big, steps=250_000, ema=0.9999)
    config.eval.update(batch_size=250, images=50_000, samples=50_000, classifier_steps=20_000)


def autoencoder(channels):
    """The released f8 KL autoencoders, of 4, 8 or 16 channels; scaling_factor is their family's."""
    network = tokenizers.F16 | dict(multipliers=(1, 2, 4, 4), attention=())
    latents = tokenizers.posterior(channels=channels, scaling_factor=0.18215, kl_weight=1e-6)
    return tokenizers.autoencoder(network, latents)

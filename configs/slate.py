"""SLATE: "Illiterate DALL-E Learns to Compose" (Singh et al., 2021).

    python -m nexttok.main --config=configs/slate.py --workdir=runs/slate

Variants (`--config=configs/slate.py:<variant>`):
  digits   (default) 4 slots, from 4 x 4 codes of 256, for scikit-learn's handwritten digits.
  dvae     its discrete VAE alone.
  shapes   5 slots for pictures of up to 4 shapes, 32 x 32 pixels as 8 x 8 codes.
  tiny     seconds: the whole path.
  shapes3d the sizes and rates of the authors' code, for 3D Shapes: 3 slots, 16 x 16 codes of 1,024,
           of pictures in class folders (--config.data.source=folder:<path>).
  clevr128 for larger scenes: 12 slots, 32 x 32 codes of 4,096.

The discrete VAE and the slots train together, each on its own loss: pictures drawn from slots
(`psnr`) are held to the discrete VAE's (`dvae_psnr`). Digits: 20.0 and 20.2 dB, 4 minutes of CPU
time in all. The authors clip the largest entry
of the gradient instead of its norm, warm up the transformer's rate alone, and halve the rates when
the loss stagnates.
"""

from configs import common, tokenizers

VARIANTS = ("digits", "dvae", "shapes", "tiny", "shapes3d", "clevr128")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("slate")
    config.generator.head = common.section(name="gmm", mixtures=16, halved=True)
    config.tokenizer = slate(dvae(anneal=500), count=4)
    config.train.tokenizer.steps = 1000
    if variant == "dvae":
        config.tokenizer = dvae()
        config.train.tokenizer.steps = 600
    elif variant == "shapes":
        shapes(config)
    elif variant == "tiny":
        tiny(config)
    elif variant != "digits":
        released(config)
        if variant == "clevr128":
            clevr(config)
    return config


def dvae(**codes):
    """Cells of 4 x 4 pixels."""
    network = dict(name="dvae", width=64, halvings=2)
    return tokenizers.autoencoder(
        network | dict(mixes=6), tokenizers.gumbel(**codes), dict(mixes=2)
    )


def slate(autoencoder, count, iterations=3, width=64, depth=3, head_dim=32, dropout=0.0):
    """Slots as wide as the transformer."""
    return common.section(
        name="slate",
        dvae=autoencoder,
        slots=common.section(
            count=count, width=width, heads=1, iterations=iterations, mlp_hidden=width
        ),
        predictor=common.section(
            width=width, depth=depth, head_dim=head_dim, mlp_hidden=4 * width, dropout=dropout,
            remat=False,
        ),
    )  # fmt: skip


def shapes(config):
    """Pictures of several shapes, of which slots should take one each."""
    tokenizers.shapes(config)
    config.data.frames = 0
    config.tokenizer = slate(dvae(), count=5, width=128)
    config.train.tokenizer.steps = 1200


def tiny(config):
    """Numbers mean little, the path is whole."""
    common.tiny(config)
    config.tokenizer = slate(dvae(channels=16, size=32, anneal=40), 2, width=32, depth=1)
    for part in ("encoder", "decoder"):
        config.tokenizer.dvae[part].update(width=16, mixes=1)


def released(config):
    """The defaults of the authors' code; the discrete VAE learns three times as fast."""
    common.imagenet(config, 64)
    config.data.update(source="folder:3dshapes", num_classes=4, augment="none")
    codes = dvae(size=1024, anneal=30_000)
    config.tokenizer = slate(codes, 3, width=192, depth=4, head_dim=48, dropout=0.1)
    config.train.tokenizer.update(
        steps=200_000, batch_size=50, optimizer="adam", learning_rate=1e-4, schedule="constant",
        warmup=30_000, b2=0.999, rates=("^(encoder|decoder|quantizer)/:3.0",),
    )  # fmt: skip


def clevr(config):
    """More slots, more rounds of attention, a deeper transformer."""
    config.data.update(source="folder:clevr", resolution=128, num_classes=1)
    codes = dvae(size=4096, anneal=30_000)
    config.tokenizer = slate(codes, 12, 7, width=192, depth=8, head_dim=24, dropout=0.1)

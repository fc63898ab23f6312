"""QLAE: "Disentanglement via Latent Quantization" (Hsu et al., 2023).

    python -m nexttok.main --config=configs/qlae.py --workdir=runs/qlae

Variants (`--config=configs/qlae.py:<variant>`):
  digits   (default) one picture of scikit-learn's handwritten digits as 32 numbers of 10 each.
  tiny     seconds: the whole path.
  shapes64 64 x 64 scenes of coloured shapes as 24 numbers of 10 each.

Weight decay is what disentangles: --config.train.tokenizer.weight_decay. The networks are a vision
transformer with one register, where the paper has convolutions and style-modulated ones.
"""

from configs import tokenizers

VARIANTS = ("digits", "tiny", "shapes64")


def get_config(variant="digits"):
    """The config of one variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected {' | '.join(VARIANTS)}")
    config = tokenizers.config("qlae")
    network = tokenizers.transformer((4, 4), 128, 4, registers=1)
    config.tokenizer = tokenizers.autoencoder(network, numbers(32))
    config.train.tokenizer.weight_decay = 0.1
    if variant == "tiny":
        tokenizers.tiny(config)
    elif variant == "shapes64":
        config.data.update(source="shapes", resolution=64, channels=3, num_classes=6)
        config.data.augment = "none"
        network = tokenizers.transformer((8, 8), 256, 6, registers=1)
        config.tokenizer = tokenizers.autoencoder(network, numbers(24))
        config.train.tokenizer.update(
            steps=200_000, batch_size=128, optimizer="adamw", learning_rate=1e-3
        )
    return config


def numbers(count):
    """The paper's bottleneck."""
    return dict(
        name="scalars", channels=count, size=10, codebook_weight=0.01, commitment_weight=0.01
    )

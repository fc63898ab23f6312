"""LPIPS weights: torchvision's VGG16 features and the linear layers of the lpips package.

They are published as two files (vgg16-*.pth, and vgg.pth of richzhang/PerceptualSimilarity,
version 0.1); either both paths are given, joined by a comma, or one file that holds all entries.
"""

import jax
import jax.numpy as jnp
import numpy as np

from nexttok.interop.checkpoints import Converter, pick, read
from nexttok.interop.releases import Release
from nexttok.nn.lpips import LPIPS, STAGES

RELEASES = (
    Release(
        "VGG16, version 0.1", "vgg16-397923af.pth,vgg.pth",
        "https://download.pytorch.org/models, "
        "https://github.com/richzhang/PerceptualSimilarity/tree/master/lpips/weights/v0.1",
        ("--config.tokenizer.perceptual_checkpoint=vgg16-397923af.pth,vgg.pth",),
    ),
)  # fmt: skip


def convert(state: dict[str, np.ndarray]) -> dict:
    """`features.N.*` and `lin{0..4}.model.1.weight` -> parameters of nexttok.nn.lpips.LPIPS.

    VGG16's classifier is not used.

    Raises:
      ConfigError: entries are missing, unknown or mis-shaped.
    """
    reader = Converter(state, "LPIPS checkpoint")
    reader.ignore(r"classifier\.")
    vgg, params, index, inputs = {}, {}, 0, 3
    for i, (channels, convs) in enumerate(STAGES):
        for j in range(convs):
            vgg[f"conv{i}_{j}"] = reader.conv(f"features.{index}", inputs, channels)
            inputs, index = channels, index + 2  # each is followed by its ReLU
        index += 1  # pooling
        weights = reader.take(f"lin{i}.model.1.weight", (1, channels, 1, 1))
        params[f"scale{i}"] = weights.reshape(channels)
    return reader.finish(params | {"vgg": vgg})


def load(paths: str) -> dict:
    """Parameters from one file, or from several joined by commas.

    Raises:
      ConfigError: no such file, a file that cannot be read, or entries that do not fit.
    """
    state = {}
    for path in paths.split(","):
        state |= pick(read(path.strip(), "tokenizer.perceptual_checkpoint"))
    return convert(state)


def shapes() -> dict:
    """The parameters as shapes, for which no file is needed."""
    image = jnp.zeros((1, 16, 16, 3))
    return jax.eval_shape(LPIPS().init, jax.random.key(0), image, image)["params"]

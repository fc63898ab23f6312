"""The weights of Frechet distances' InceptionV3: TensorFlow's of 2015-12-05, as PyTorch entries."""

import jax
import jax.numpy as jnp
import numpy as np

from nexttok.interop.checkpoints import Converter, pick, read
from nexttok.interop.releases import Release
from nexttok.nn.inception import Inception

RELEASES = (
    Release(
        "2015-12-05, also toshas/torch-fidelity's", "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights",
        ("--metrics=fid,sfid,is,pr,kid", "--inception=pt_inception-2015-12-05-6726825d.pth"),
    ),
)  # fmt: skip

EPS = 1e-3  # of the batch normalizations


def convert(state: dict[str, np.ndarray], net: Inception | None = None) -> dict:
    """`<unit>.conv.weight`, `<unit>.bn.*` and `fc.weight` -> parameters of nn.inception.Inception.

    Normalizations are folded into kernels and biases; the classifier's bias is not used.

    Raises:
      ConfigError: entries are missing, unknown or mis-shaped.
    """
    reader, params = Converter(state, "Inception checkpoint"), {}
    reader.ignore(r"fc\.bias|AuxLogits\.|.*num_batches_tracked")
    for name, leaves in shapes(net or Inception()).items():
        if name == "fc":
            params[name] = reader.take("fc.weight", leaves.shape[::-1]).T
            continue
        rows, columns, inputs, outputs = leaves["kernel"].shape
        kernel = reader.take(f"{name}.conv.weight", (outputs, inputs, rows, columns))
        scale, shift, mean, variance = (
            reader.take(f"{name}.bn.{part}", (outputs,)).astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain = scale / np.sqrt(variance + EPS)
        params[name] = {
            "kernel": (kernel.transpose(2, 3, 1, 0) * gain).astype(np.float32),
            "bias": (shift - mean * gain).astype(np.float32),
        }
    return reader.finish(params)


def shapes(net: Inception) -> dict:
    """The parameters as shapes, for which no file is needed."""
    image = jnp.zeros((1, 299, 299, 3))
    return jax.eval_shape(net.init, jax.random.key(0), image)["params"]


def load(path: str) -> dict:
    """Reads the file.

    Raises:
      ConfigError: no such file, a file that cannot be read, or entries that do not fit.
    """
    return convert(pick(read(path, "inception")))

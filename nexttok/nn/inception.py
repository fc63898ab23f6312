"""The InceptionV3 of Frechet distances: TensorFlow's graph of December 2015 (Szegedy et al.,
"Rethinking the Inception Architecture", 2016; Heusel et al., 2017).

It differs from the usual one in its 1,008 classes, in averages that leave padding out, and in a
maximum in place of the average in the last block. Units have the names of the PyTorch port; their
batch normalization is folded into kernel and bias by interop/inception.py.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nexttok.nn.linear import INITS

SIDE, CLASSES, SPATIAL = 299, 1008, 7


class Step(NamedTuple):
    """A convolution of rows x columns and its ReLU."""

    name: str
    features: int
    rows: int = 1
    columns: int = 1
    stride: int = 1
    pad: bool = True


def _halving(name: str, features: int) -> Step:
    return Step(name, features, 3, 3, 2, False)


def _block_a(pooled: int) -> tuple:
    return (
        (Step("branch1x1", 64),),
        (Step("branch5x5_1", 48), Step("branch5x5_2", 64, 5, 5)),
        (
            Step("branch3x3dbl_1", 64),
            Step("branch3x3dbl_2", 96, 3, 3),
            Step("branch3x3dbl_3", 96, 3, 3),
        ),
        ("mean", Step("branch_pool", pooled)),
    )


def _block_c(width: int) -> tuple:
    return (
        (Step("branch1x1", 192),),
        (
            Step("branch7x7_1", width),
            Step("branch7x7_2", width, 1, 7),
            Step("branch7x7_3", 192, 7, 1),
        ),
        (
            Step("branch7x7dbl_1", width),
            Step("branch7x7dbl_2", width, 7, 1),
            Step("branch7x7dbl_3", width, 1, 7),
            Step("branch7x7dbl_4", width, 7, 1),
            Step("branch7x7dbl_5", 192, 1, 7),
        ),
        ("mean", Step("branch_pool", 192)),
    )


def _block_e(pool: str) -> tuple:
    def fork(name: str) -> tuple[Step, Step]:
        return Step(f"{name}a", 384, 1, 3), Step(f"{name}b", 384, 3, 1)

    return (
        (Step("branch1x1", 320),),
        (Step("branch3x3_1", 384), fork("branch3x3_2")),
        (Step("branch3x3dbl_1", 448), Step("branch3x3dbl_2", 384, 3, 3), fork("branch3x3dbl_3")),
        (pool, Step("branch_pool", 192)),
    )


STEM = (
    _halving("Conv2d_1a_3x3", 32),
    Step("Conv2d_2a_3x3", 32, 3, 3, pad=False),
    Step("Conv2d_2b_3x3", 64, 3, 3),
    "halve",
    Step("Conv2d_3b_1x1", 80),
    Step("Conv2d_4a_3x3", 192, 3, 3, pad=False),
    "halve",
)
# name -> branches, whose results are concatenated; a tuple inside a branch forks it
BLOCKS = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": (
        (_halving("branch3x3", 384),),
        (
            Step("branch3x3dbl_1", 64),
            Step("branch3x3dbl_2", 96, 3, 3),
            _halving("branch3x3dbl_3", 96),
        ),
        ("halve",),
    ),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": (
        (Step("branch3x3_1", 192), _halving("branch3x3_2", 320)),
        (
            Step("branch7x7x3_1", 192),
            Step("branch7x7x3_2", 192, 1, 7),
            Step("branch7x7x3_3", 192, 7, 1),
            _halving("branch7x7x3_4", 192),
        ),
        ("halve",),
    ),
    "Mixed_7b": _block_e("mean"),
    "Mixed_7c": _block_e("max"),
}
POOLS = {
    "halve": lambda x: nn.max_pool(x, (3, 3), (2, 2)),
    "max": lambda x: nn.max_pool(x, (3, 3), padding="SAME"),
    "mean": lambda x: nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False),
}


class Unit(nn.Module):
    """A step with its parameters."""

    step: Step

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        s = self.step
        shape = (s.rows, s.columns, x.shape[-1], s.features)
        kernel = self.param("kernel", INITS["xavier"], shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (s.features,))
        pads = [(n // 2, n // 2) if s.pad else (0, 0) for n in (s.rows, s.columns)]
        y = jax.lax.conv_general_dilated(
            x, kernel, (s.stride,) * 2, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(y + bias.reshape(1, 1, 1, -1))


class Inception(nn.Module):
    """Pictures [B, 299, 299, 3] in about [-1, 1] to what is measured of them.

    Attributes:
      narrow: divides the number of features of every unit (for tests).
    """

    narrow: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B F"]]:
        """{pool: [B, 2048]; spatial: [B, 17 * 17 * 7], the first 7 channels of mixed_6/conv, as
        ADM's sFID reads them; logits: [B, 1008], without the bias, as Inception Scores do}."""
        for step in STEM:
            x = self._run(x, "", step)
        for name, branches in BLOCKS.items():
            made = []
            for branch in branches:
                y = x
                for step in branch:
                    y = self._run(y, f"{name}.", step)
                made.append(y)
            if name == "Mixed_6d":
                spatial = made[0][..., :SPATIAL].reshape(len(x), -1)
            x = jnp.concatenate(made, axis=-1)
        pool = x.mean((1, 2))
        kernel = self.param("fc", INITS["xavier"], (pool.shape[-1], CLASSES))
        return {"pool": pool, "spatial": spatial, "logits": pool @ kernel}

    def _run(self, x, prefix, step):
        if isinstance(step, str):
            return POOLS[step](x)
        if isinstance(step, Step):
            step = step._replace(features=step.features // self.narrow)
            return Unit(step, name=prefix + step.name)(x)
        return jnp.concatenate([self._run(x, prefix, part) for part in step], axis=-1)

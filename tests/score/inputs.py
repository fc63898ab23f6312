"""Images, features and Inception weights that no file has to hold."""

import numpy as np

from tests.parity import official


def blocky(seed: int, count: int, height: int, width: int) -> np.ndarray:
    """uint8 [count, height, width, 3]: 6 x 5 patches of colours, a range of its own each."""
    draw = np.random.default_rng(seed)
    low = draw.integers(0, 128, (count, 1, 1, 3))
    colours = low + draw.integers(0, 128, (count, 6, 5, 3))
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 5 // width
    return np.uint8(colours[:, rows][:, :, columns])


def entry(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An official parameter: kernels keep the size of activations, variances are positive."""
    values = official.seeded(name, shape)
    if name.endswith("conv.weight"):
        return np.float32(2**0.5) * values
    return np.exp(values) if name.endswith("running_var") else values


def sets(rows_a=300, rows_b=250, width=48):
    """Two sets of non-negative features that differ in mean and covariance, float32."""
    draw = np.random.default_rng(5)
    mix = draw.normal(size=(width, width)) / width**0.5
    a = draw.normal(size=(rows_a, width)) @ mix
    b = draw.normal(0.2, 1.3, (rows_b, width)) @ mix + 0.1
    return np.maximum(a, 0).astype(np.float32), np.maximum(b, 0).astype(np.float32)

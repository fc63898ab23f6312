"""Weights of official models that no file has to hold: drawn from the parameter's name and shape.

A fixture was made with official code whose every parameter was overwritten by `seeded`; it holds
shapes, inputs and outputs, and the tests draw the same weights again.
"""

import pathlib
import zlib

import numpy as np

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def seeded(name: str, shape: tuple[int, ...], layout: str = "torch") -> np.ndarray:
    """float32 weights of a parameter, the same in every process.

    Matrices and kernels are divided by the root of their fan-in (every axis but the first in
    torch's layout, every axis but the last in flax's); one-dimensional weights and scales lie
    around 1, other vectors around 0.
    """
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) >= 2:
        fan = shape[:-1] if layout == "flax" else shape[1:]
        values = values / np.sqrt(np.prod(fan))
    elif name.endswith(("weight", "scale")):
        values = 1 + 0.1 * values
    else:
        values = 0.1 * values
    return np.asarray(values, np.float32)


def state_dict(fixture, layout: str = "torch") -> dict[str, np.ndarray]:
    """The official parameters of a fixture, from its "shape/<name>" entries.

    A parameter with an entry "gain/<name>" is multiplied by it (embeddings, so that tokens differ).
    """

    def weights(name):
        shape = tuple(int(d) for d in fixture[f"shape/{name}"])
        gain = fixture.get(f"gain/{name}", 1.0)
        return np.float32(gain) * seeded(name, shape, layout)

    names = [k.removeprefix("shape/") for k in fixture if k.startswith("shape/")]
    return {name: weights(name) for name in names}


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of a fixture."""
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        return dict(arrays)


def close(ours, theirs, tolerance: float = 1e-4) -> None:
    """Asserts agreement to a relative tolerance of the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error < tolerance, f"relative error {error:.2e}"

"""Statistics of a reference set in the files of ADM's evaluator (Dhariwal and Nichol, 2021).

`mu` and `sigma` are mean and covariance of pool features, `mu_s` and `sigma_s` of spatial ones;
`arr_0`, where it is there, holds images.
"""

import os
import pathlib

import numpy as np

from nexttok.config import ConfigError, check
from nexttok.evals.results import write_arrays
from nexttok.score.images import DAMAGED

NAMES = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


def read(path: pathlib.Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], bool]:
    """{"pool": (mean, covariance), "spatial": ...} as far as a .npz holds them, in float64, and
    whether it holds images.

    Raises:
      ConfigError: a damaged file, or arrays that are no statistics.
    """
    found = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for kind, (mean, covariance) in NAMES.items():
                if mean in arrays and covariance in arrays:
                    found[kind] = tuple(np.float64(arrays[n]) for n in (mean, covariance))
            images = "arr_0" in arrays
    except DAMAGED as error:
        raise ConfigError(f"config.reference = {str(path)!r}: {error}") from error
    for kind, (mean, covariance) in found.items():
        fits = mean.ndim == 1 and covariance.shape == mean.shape * 2
        fits = fits and bool(np.isfinite(mean).all() and np.isfinite(covariance).all())
        shapes = f"{mean.shape} and {covariance.shape}"
        allowed = f"finite {' and '.join(NAMES[kind])}, [D] and [D, D], not {shapes}"
        check(fits, "reference", str(path), allowed)
    check(images or bool(found), "reference", str(path), "arr_0, or mu and sigma")
    return found, images


def write(path: str | os.PathLike, gaussians: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes mu, sigma[, mu_s, sigma_s] to a .npz, whole or not at all."""
    named = ((NAMES[kind], pair) for kind, pair in gaussians.items())
    write_arrays(path, {n: a for names, pair in named for n, a in zip(names, pair, strict=True)})

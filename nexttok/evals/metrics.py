"""Numbers of images and codes."""

import math

import numpy as np
from jaxtyping import Float, Int
from skimage.metrics import structural_similarity


def psnr(
    x: Float[np.ndarray, "B *s"], y: Float[np.ndarray, "B *s"], data_range: float = 2.0
) -> Float[np.ndarray, "B"]:
    """Peak signal-to-noise ratio in dB per image; equal images give 100 dB."""
    error = np.square(x.astype(np.float64) - y).mean(tuple(range(1, x.ndim)))
    return 10 * np.log10(data_range**2 / np.maximum(error, data_range**2 * 1e-10))


def ssim(
    x: Float[np.ndarray, "B H W C"], y: Float[np.ndarray, "B H W C"], data_range: float = 2.0
) -> Float[np.ndarray, "B"]:
    """Structural similarity per image (Wang et al., 2004), scikit-image's 7 x 7 window."""
    side = min(x.shape[1:3])
    window = min(7, side if side % 2 else side - 1)
    return np.asarray(
        [
            structural_similarity(a, b, data_range=data_range, channel_axis=-1, win_size=window)
            for a, b in zip(x, y, strict=True)
        ]
    )


def bits_per_image(tokens: int, vocab: int) -> float:
    """tokens log2(vocab)."""
    return tokens * math.log2(vocab)


def codebook_usage(ids: Int[np.ndarray, "M *n"], vocab: int) -> dict[str, float]:
    """Share of the codes that occur, and the perplexity of their frequencies."""
    counts = np.bincount(ids.ravel(), minlength=vocab)
    p = counts[counts > 0] / counts.sum()
    return {
        "usage": float((counts > 0).mean()),
        "perplexity": float(np.exp(-(p * np.log(p)).sum())),
        "tokens_seen": int(counts.sum()),
    }

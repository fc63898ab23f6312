"""Positions: fixed sine-cosine tables, rotary embeddings over 1, 2 or 3 axes, time features."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from nexttok.config import ConfigError


def grid_positions(grid: tuple[int, ...]) -> Int[np.ndarray, "N axes"]:
    """Row-major coordinates of every cell of a token grid: (5,) -> [5, 1], (H, W) -> [H*W, 2]."""
    return np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, len(grid))


def pyramid_positions(sides: tuple[int, ...]) -> Float[np.ndarray, "N 2"]:
    """Coordinates of every cell of square maps, coarse to fine, in cells of the finest.

    A cell lies at its centre: the one cell of side 1 at 1.5, 1.5 where the finest side is 4.
    """
    cells = [(grid_positions((p, p)) + 0.5) * (sides[-1] / p) - 0.5 for p in sides]
    return np.concatenate(cells)


def sincos_table(grid: tuple[int, ...], width: int, base: float = 1e4) -> Float[np.ndarray, "N D"]:
    """Fixed sine-cosine positions of a row-major grid.

    Channels are split evenly over the axes, last axis first, each as [sin | cos] with frequencies
    base^(-k / (D / (2 axes))): for a 2D grid the quarters are sin(w), cos(w), sin(h), cos(h), as in
    MoCo v3 and FlexTok.

    Raises:
      ConfigError: `width` does not divide by twice the number of axes.
    """
    axes = len(grid)
    if width % (2 * axes):
        raise ConfigError(f"width = {width}: expected a multiple of {2 * axes} for a {axes}D grid")
    half = width // (2 * axes)
    omega = base ** (-np.arange(half, dtype=np.float64) / half)
    angles = grid_positions(grid)[:, ::-1, None] * omega
    table = np.stack([np.sin(angles), np.cos(angles)], axis=2)  # [N, axes, 2, half]
    return table.reshape(-1, width).astype(np.float32)


def clip_table(grid: tuple[int, int, int], width: int) -> Float[np.ndarray, "N D"]:
    """Fixed positions of patches of videos [T, H, W]: the table of frames plus that of rows and
    columns, both of full width (LARP: Wang et al., 2024)."""
    frames, places = sincos_table(grid[:1], width), sincos_table(grid[1:], width)
    return (frames[:, None] + places[None]).reshape(-1, width)


def rope_angles(
    positions: Real[np.ndarray, "N axes"],
    head_dim: int,
    base: float = 1e4,
) -> Float[np.ndarray, "N half"]:
    """Rotation angles of rotary embeddings; the head's pairs are split evenly over the axes.

    With A axes, axis a rotates pairs [a*P, (a+1)*P), P = head_dim / (2A), at frequencies
    base^(-k/P): the usual 1D table for A = 1, LlamaGen's 2D table for A = 2.

    Raises:
      ConfigError: `head_dim` does not divide by twice the number of axes.
    """
    axes = positions.shape[-1]
    if head_dim % (2 * axes):
        raise ConfigError(f"head_dim = {head_dim}: expected a multiple of {2 * axes}")
    pairs = head_dim // (2 * axes)
    omega = base ** (-np.arange(pairs, dtype=np.float64) / pairs)
    return (positions[..., None] * omega).reshape(len(positions), -1).astype(np.float32)


def rope_table(
    positions: Real[np.ndarray, "N axes"],
    head_dim: int,
    base: float = 1e4,
) -> Float[np.ndarray, "N half 2"]:
    """(cos, sin) of `rope_angles`: what `rotate` takes."""
    angles = rope_angles(positions, head_dim, base)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def rotate(
    x: Float[Array, "B S H d"],
    rotary: Float[Array, "S half 2"] | Float[Array, "B S half 2"],
    interleaved: bool = True,
) -> Float[Array, "B S H d"]:
    """Rotates channel pairs of x (Su et al., RoFormer, 2021).

    Args:
      x: queries or keys.
      rotary: (cos, sin) per slot and pair; zeros make the vector zero, as LlamaGen does for slots
        without a position.
      interleaved: pairs are channels (2i, 2i+1); otherwise (i, i + d/2).
    """
    rotary = rotary[None] if rotary.ndim == 3 else rotary
    cos, sin = rotary[:, :, None, :, 0].astype(x.dtype), rotary[:, :, None, :, 1].astype(x.dtype)
    half = x.shape[-1] // 2
    if interleaved:
        pairs = x.reshape(*x.shape[:-1], half, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def time_features(
    t: Float[Array, "B"], width: int, max_period: float, scale: float = 1.0
) -> Float[Array, "B width"]:
    """[cos | sin](scale * t * max_period^(-k/half)), k = 0 .. half-1, in float32."""
    half = width // 2
    omega = scale * max_period ** (-np.arange(half, dtype=np.float64) / half)
    angles = t.astype(jnp.float32)[:, None] * jnp.asarray(omega, jnp.float32)[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)

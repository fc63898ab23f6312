"""Pictures and videos as rows of patches, and back."""

from einops import rearrange
from jaxtyping import Array, Float


def patchify(x: Float[Array, "B *s C"], patch: tuple[int, ...]) -> Float[Array, "B N F"]:
    """Row-major patches of (rows, columns) or (frames, rows, columns).

    Features are in (frame, row, column, channel) order.
    """
    if len(patch) == 2:
        return rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=patch[0], q=patch[1])
    r, p, q = patch
    return rearrange(x, "b (t r) (h p) (w q) c -> b (t h w) (r p q c)", r=r, p=p, q=q)


def unpatchify(
    x: Float[Array, "B N F"], grid: tuple[int, ...], patch: tuple[int, ...]
) -> Float[Array, "B *s C"]:
    """Inverse of patchify; `grid` counts patches."""
    if len(patch) == 2:
        h, p, q = grid[0], *patch
        return rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=h, p=p, q=q)
    (t, h, _), (r, p, q) = grid, patch
    return rearrange(x, "b (t h w) (r p q c) -> b (t r) (h p) (w q) c", t=t, h=h, r=r, p=p, q=q)

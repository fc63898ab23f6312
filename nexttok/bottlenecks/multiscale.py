"""The multi-scale residual quantizer of VAR (Tian et al., "Visual Autoregressive Modeling: Scalable
Image Generation via Next-Scale Prediction", 2024).

A latent f is a sum of maps of growing side. Map s holds the codes nearest to what the coarser ones
leave, shrunk to its side; it is enlarged to the latent's side, smoothed by phi and added:

    u = area(f - a, p_s)    ids_s = nearest(u)    a += phi_s(bicubic(E[ids_s], p_S))

`resize` "spectral" cuts the latent by frequencies instead (NFIG: Huang et al., "Autoregressive
Image Generation with Next-Frequency Prediction", 2025): map s of side p holds the waves of fewer
than p / 2 periods, the last map all of them; resizing drops or adds frequencies. That paper's code
is not public: the details are a reconstruction.

All scales share one codebook E [V, C], and a few convolutions phi_s(h) = (1 - w) h + w conv(h):
`phis` = {"conv0": {"kernel": [3, 3, C, C], "bias": [C]}, "conv1": ...}, w is `ratio`. Ids are
ordered coarse to fine, row-major inside a scale. The last scale is not resized. float32 throughout.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nexttok.bottlenecks import vq
from nexttok.bottlenecks.contract import Coded
from nexttok.config import build, check
from nexttok.tokens import Tokens, TokenSpec


def check_sides(sides: tuple[int, ...], side: int, where: str) -> None:
    """Raises ConfigError unless the sides grow up to the latent's `side`."""
    growing = all(a < b for a, b in zip((0, *sides), sides, strict=False))
    check(growing and sides[-1:] == (side,), f"{where}.sides", sides,
          f"growing sides of which the last is the latent's, {side}")  # fmt: skip


def validate(sides: tuple[int, ...], side: int, phis: int, ratio: float, where: str) -> None:
    """Raises ConfigError unless the sides grow up to the latent's `side` and phi is sensible."""
    check_sides(sides, side, where)
    check(1 <= phis <= len(sides), f"{where}.phis", phis, f"1 .. {len(sides)}, the scales")
    check(0 <= ratio <= 1, f"{where}.phi_ratio", ratio, "0 .. 1")


def ends(sides: tuple[int, ...]) -> tuple[int, ...]:
    """Number of tokens of the first 1, 2, ... scales."""
    return tuple(int(n) for n in np.cumsum([p * p for p in sides]))


def phi_of_scale(scales: int, phis: int) -> tuple[int, ...]:
    """The convolution of each scale: of `phis` even ticks in [0, 1], the nearest to s / (S - 1).

    Scales 2 and 7 of VAR's ten lie between two ticks: rounding decides, in float64.
    """
    margin = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(margin, 1 - margin, phis)
    at = [s / max(scales - 1, 1) for s in range(scales)]
    return tuple(int(np.argmin(np.abs(ticks - a))) for a in at)


def init_phis(key: Array, phis: int, channels: int) -> dict:
    """Kernels uniform in +-1 / sqrt(9 C), biases zero."""
    bound, shape = (9 * channels) ** -0.5, (3, 3, channels, channels)
    keys = [jax.random.fold_in(key, i) for i in range(phis)]
    kernels = [jax.random.uniform(k, shape, minval=-bound, maxval=bound) for k in keys]
    return {
        f"conv{i}": {"kernel": kernel, "bias": jnp.zeros(channels)}
        for i, kernel in enumerate(kernels)
    }


def area(out: int, size: int) -> Float[np.ndarray, "o i"]:
    """Adaptive average pooling of `size` samples to `out`: bins overlap unless they divide."""
    i, at = np.arange(out)[:, None], np.arange(size)[None]
    inside = (at >= i * size // out) & (at < -(-(i + 1) * size // out))
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def bicubic(out: int, size: int) -> Float[np.ndarray, "o i"]:
    """Cubic convolution with a = -3/4: half-pixel centres, clamped borders, no antialiasing."""
    centre = (np.arange(out) + 0.5) * size / out - 0.5
    base = np.floor(centre).astype(int)
    matrix = np.zeros((out, size))
    for tap in (-1, 0, 1, 2):
        gap, a = np.abs(centre - (base + tap)), -0.75
        near = (a + 2) * gap**3 - (a + 3) * gap**2 + 1
        far = a * (gap**3 - 5 * gap**2 + 8 * gap - 4)
        at = np.clip(base + tap, 0, size - 1)
        np.add.at(matrix, (np.arange(out), at), np.where(gap <= 1, near, far))
    return matrix.astype(np.float32)


def spectral(out: int, size: int) -> Float[np.ndarray, "o i"]:
    """`size` samples as `out` of the same waves, those of fewer than min(out, size) / 2 periods.

    Shrinking then enlarging drops the other waves and keeps these.
    """
    least = min(out, size)
    at, to = np.arange(size) / size, np.arange(out) / out
    count = (least - 1) // 2
    waves = 2 * np.pi * np.arange(1, count + 1)
    angles = waves[:, None, None] * (to[:, None] - at[None])
    matrix = (1 + 2 * np.cos(angles).sum(0)) / size if out != size else np.eye(size)
    return matrix.astype(np.float32)


SHRINK = {"area": area, "spectral": spectral}
ENLARGE = {"area": bicubic, "spectral": spectral}


def resample(
    x: Float[Array, "B h w C"], matrix: Float[np.ndarray, "o i"] | Float[Array, "o i"]
) -> Array:
    """A square map resized by one matrix along both axes, in full float32."""
    m = jnp.asarray(matrix)
    rows = jnp.einsum("pi,bijc->bpjc", m, x, precision="highest")
    return jnp.einsum("qj,bpjc->bpqc", m, rows, precision="highest")


def shrink(x: Float[Array, "B H W C"], side: int, resize: str = "area") -> Float[Array, "B p p C"]:
    """Resizing to `side`; nothing where that is the map's own."""
    return x if x.shape[1] == side else resample(x, SHRINK[resize](side, x.shape[1]))


def smooth(h: Float[Array, "B H W C"], phi: Mapping[str, Array], ratio: float) -> Array:
    """phi(h) = (1 - ratio) h + ratio conv(h)."""
    y = jax.lax.conv_general_dilated(
        h, jnp.asarray(phi["kernel"]), (1, 1), ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
    )  # fmt: skip
    return (1 - ratio) * h + ratio * (y + jnp.asarray(phi["bias"]).reshape(1, 1, 1, -1))


def contribution(
    ids: Int[Array, "B n"],
    scale: int,
    codebook: Float[Array, "V C"],
    phis: Mapping,
    sides: tuple[int, ...],
    ratio: float = 0.5,
    resize: str = "area",
) -> Float[Array, "B H W C"]:
    """What the ids of one scale add to the latent."""
    p, full = sides[scale], sides[-1]
    h = vq.ids_to_values(ids, codebook).reshape(len(ids), p, p, -1)
    if p != full:
        h = resample(h, ENLARGE[resize](full, p))
    return smooth(h, phis[f"conv{phi_of_scale(len(sides), len(phis))[scale]}"], ratio)


def split(tokens: Array, sides: tuple[int, ...]) -> list[Array]:
    """Tokens [B, n, ...] of each whole scale among the given ones [B, N, ...]."""
    stops = [n for n in ends(sides) if n <= tokens.shape[1]]
    return [tokens[:, a:b] for a, b in zip([0, *stops], stops, strict=False)]


def ids_to_values(
    ids: Int[Array, "B N"],
    codebook: Float[Array, "V C"],
    phis: Mapping,
    sides: tuple[int, ...],
    ratio: float = 0.5,
    keep: Int[Array, "B"] | None = None,
    resize: str = "area",
) -> Float[Array, "B H W C"]:
    """The latent of ids: the sum of what every whole scale among them adds.

    Args:
      ids: all tokens or a prefix; a scale that is not complete adds nothing.
      codebook, phis, sides, ratio, resize: see the module.
      keep: tokens of each example that count, None for all.
    """
    total = jnp.zeros((len(ids), sides[-1], sides[-1], codebook.shape[1]))
    for s, (part, end) in enumerate(zip(split(ids, sides), ends(sides), strict=False)):
        h = contribution(part, s, codebook, phis, sides, ratio, resize)
        total += h if keep is None else jnp.where((keep >= end)[:, None, None, None], h, 0.0)
    return total


def prefix_values(
    ids: Int[Array, "B N"],
    scales: int,
    codebook: Float[Array, "V C"],
    phis: Mapping,
    sides: tuple[int, ...],
    ratio: float = 0.5,
) -> Float[Array, "B H W C"]:
    """The latent that the first `scales` scales describe; finer ids are never read."""
    kept = ids[:, : (0, *ends(sides))[scales]]
    return ids_to_values(kept, codebook, phis, sides, ratio)


def start(batch: int, channels: int, sides: tuple[int, ...]) -> tuple[Array, Array]:
    """(f_hat [B, H, W, C], inputs of scale 0 [B, p * p, C]) before anything is known: zeros."""
    side = sides[-1]
    return jnp.zeros((batch, side, side, channels)), jnp.zeros((batch, sides[0] ** 2, channels))


def advance(
    f_hat: Float[Array, "B H W C"],
    ids: Int[Array, "B n"],
    scale: int,
    codebook: Float[Array, "V C"],
    phis: Mapping,
    sides: tuple[int, ...],
    ratio: float = 0.5,
    resize: str = "area",
) -> tuple[Float[Array, "B H W C"], Float[Array, "B m C"]]:
    """Adds the ids of one scale.

    Returns:
      The new f_hat, and the inputs of the next scale: f_hat shrunk to its side ([B, 0, C] after
      the last one).
    """
    f_hat = f_hat + contribution(ids, scale, codebook, phis, sides, ratio, resize)
    if scale + 1 == len(sides):
        return f_hat, jnp.zeros((len(ids), 0, codebook.shape[1]))
    p = sides[scale + 1]
    return f_hat, shrink(f_hat, p, resize).reshape(len(ids), p * p, -1)


def ar_inputs(
    ids: Int[Array, "B N"],
    codebook: Float[Array, "V C"],
    phis: Mapping,
    sides: tuple[int, ...],
    ratio: float = 0.5,
    resize: str = "area",
) -> Float[Array, "B N C"]:
    """For each token, what the coarser scales decode to, shrunk to the side of its own scale."""
    f_hat, first = start(len(ids), codebook.shape[1], sides)
    inputs = [first]
    for s, part in enumerate(split(ids, sides)):
        f_hat, following = advance(f_hat, part, s, codebook, phis, sides, ratio, resize)
        inputs.append(following)
    return jnp.concatenate(inputs, axis=1)


def quantize(
    f: Float[Array, "B H W C"],
    codebook: Float[Array, "V C"],
    phis: Mapping,
    sides: tuple[int, ...],
    beta: float = 0.25,
    ratio: float = 0.5,
    normalize: bool = False,
    resize: str = "area",
) -> tuple[Float[Array, "B H W C"], Int[Array, "B N"], dict]:
    """Residual codes of a latent, with a straight-through gradient.

    Args:
      f: encoder output.
      codebook, phis, sides, ratio: see the module.
      beta: weight of the commitment loss; the codebook loss has weight 1.
      normalize: codes are chosen by cosine. Their values stay the raw rows.
      resize: area | spectral.

    Returns:
      z_q, ids int32, {"codebook": mean|sg f - a_s|^2, "commitment": beta mean|f - sg a_s|^2}: a_s
      sums scales 0 .. s; means run over scales and every element. Of a spectral pyramid f is what
      the bands 0 .. s hold of it.
    """
    stop = jax.lax.stop_gradient
    f = f.astype(jnp.float32)
    rows = stop(vq.unit(codebook) if normalize else codebook)
    f_hat, ids, terms = jnp.zeros_like(f), [], []
    for s, p in enumerate(sides):
        u = stop(shrink(f - f_hat, p, resize)).reshape(-1, f.shape[-1])
        found = vq.nearest(vq.unit(u) if normalize else u, rows).reshape(len(f), p * p)
        f_hat = f_hat + contribution(found, s, codebook, phis, sides, ratio, resize)
        ids.append(found)
        aim = f if resize == "area" else resample(shrink(f, p, resize), spectral(sides[-1], p))
        terms.append((jnp.square(stop(aim) - f_hat).mean(), jnp.square(aim - stop(f_hat)).mean()))
    learn, commit = (sum(term) / len(sides) for term in zip(*terms, strict=True))
    aux = {"codebook": learn, "commitment": beta * commit}
    return f + stop(f_hat - f), jnp.concatenate(ids, axis=1), aux


@dataclasses.dataclass(frozen=True)
class MultiScale:
    """The pyramid of a square latent; parameters {embedding, phi: {conv0, ...}}.

    Attributes:
      channels: width of a code and of the latent.
      size: number of codes.
      normalize: codes are chosen by cosine; their values keep their length.
      beta: weight of the commitment loss.
      sides: of the maps, growing up to the latent's side.
      phis: convolutions that the scales share; 4 of ten scales in the release.
      phi_ratio: their share in phi.
      resize: area | spectral.
    """

    channels: int
    size: int
    normalize: bool
    beta: float
    sides: tuple[int, ...]
    phis: int
    phi_ratio: float
    resize: str
    where: str

    def __post_init__(self):
        for name, least in (("channels", 1), ("size", 2), ("beta", 0)):
            value = getattr(self, name)
            check(value >= least, f"{self.where}.{name}", value, f"at least {least}")
        check(self.resize in SHRINK, f"{self.where}.resize", self.resize, " | ".join(SHRINK))

    @property
    def inputs(self) -> int:
        """As many as a code has."""
        return self.channels

    def spec(self, grid: tuple[int, ...]) -> TokenSpec:
        """All maps in one row; a prefix decodes as far as its last whole map."""
        square(grid, self.where)
        validate(self.sides, grid[0], self.phis, self.phi_ratio, self.where)
        return TokenSpec((ends(self.sides)[-1],), self.size, self.channels, True, self.sides)

    def init(self, key: Array) -> dict:
        """Parameters; see the class."""
        rows = vq.init_codebook(key, self.size, self.channels)
        return {"embedding": rows, "phi": init_phis(key, self.phis, self.channels)}

    def _pyramid(self, params):
        """What every function of this file takes after its own arguments."""
        return params["embedding"], params["phi"], self.sides

    def quantize(self, params: dict, z: Array, rng: Array | None, train: bool = True) -> Coded:
        """See the function; rng is not used."""
        del rng, train
        values, ids, losses = quantize(
            z, *self._pyramid(params), self.beta, self.phi_ratio, self.normalize, self.resize
        )
        metrics = losses | {"perplexity": vq.perplexity(ids, self.size)}
        return Coded(values, ids, sum(losses.values()), metrics, {})

    def encode(self, params: dict, z: Array, rng: Array | None = None) -> Tokens:
        """Ids [B, N], coarse to fine and row-major inside a map, and as values [B, N, C] what the
        coarser maps of each token decode to; deterministic, rng is not used."""
        ids = self.quantize(params, z, rng).ids
        values = ar_inputs(ids, *self._pyramid(params), self.phi_ratio, self.resize)
        return Tokens(ids=ids, values=values)

    def decode(
        self,
        params: dict,
        tokens: Tokens,
        grid: tuple[int, ...],
        keep: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B h w C"]:
        """The latent of ids [B, M <= N]; values are not read.

        Maps that are not complete add nothing, nor do maps beyond the first `keep` tokens.
        """
        del grid
        pyramid = (*self._pyramid(params), self.phi_ratio, keep, self.resize)
        return ids_to_values(tokens.ids, *pyramid)

    def start(self, batch: int) -> tuple[Float[Array, "B h w C"], Float[Array, "B n C"]]:
        """(f_hat, inputs of map 0) before any map is known: zeros."""
        return start(batch, self.channels, self.sides)

    def advance(
        self, params: dict, f_hat: Float[Array, "B h w C"], ids: Int[Array, "B n"], k: int
    ) -> tuple[Float[Array, "B h w C"], Float[Array, "B m C"]]:
        """Adds the ids of map k: (f_hat, inputs of map k + 1), the latter empty after the last."""
        return advance(f_hat, ids, k, *self._pyramid(params), self.phi_ratio, self.resize)


def square(grid: tuple[int, ...], where: str) -> None:
    """Raises ConfigError unless latents lie on a square grid."""
    fits = len(grid) == 2 and grid[0] == grid[1]
    check(fits, f"{where}.name", "of a pyramid", f"a bottleneck without one for latents {grid}")


def make(section, where: str) -> MultiScale:
    """From a config section; raises ConfigError for wrong keys or values."""
    return build(MultiScale, section, where, named=True)

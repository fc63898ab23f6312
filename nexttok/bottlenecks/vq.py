"""Vector quantization (van den Oord et al., "Neural Discrete Representation Learning", 2017).

With `normalize` distances and values use unit vectors (Yu et al., "Vector-quantized Image Modeling
with Improved VQGAN", 2021). The codebook learns by gradient or by moving averages (upkeep.py).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.bottlenecks import search, upkeep
from nexttok.bottlenecks.contract import Coded, Codes
from nexttok.bottlenecks.search import among_nearest, nearest
from nexttok.config import build

GRADIENTS, UPDATES = ("straight", "rotation"), ("gradient", "ema")
REVIVALS, INITS = ("none", "random", "anchor"), ("uniform", "normal", "kaiming", "kmeans")
ENTROPY_ROWS = 1024  # latents whose soft assignments a device holds at a time


def init_codebook(key: Array, size: int, channels: int) -> Float[Array, "V C"]:
    """Uniform in [-1/V, 1/V], the VQ-VAE initialization."""
    return jax.random.uniform(key, (size, channels), minval=-1.0 / size, maxval=1.0 / size)


def unit(x: Float[Array, "*n C"]) -> Float[Array, "*n C"]:
    """x / |x| over the last axis, guarded at 1e-12."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def ids_to_values(
    ids: Int[Array, "*n"], codebook: Float[Array, "V C"], normalize: bool = False
) -> Float[Array, "*n C"]:
    """Codebook rows of ids, of unit length when `normalize`."""
    return jnp.take(unit(codebook) if normalize else codebook, ids, axis=0)


def rotated(z: Float[Array, "*n C"], code: Float[Array, "*n C"]) -> Float[Array, "*n C"]:
    """The code, whose gradient reaches z turned and scaled as z is to become it (Fifty et al.,
    "Restructuring Vector Quantization with the Rotation Trick", 2024)."""
    stop = jax.lax.stop_gradient
    u, q = stop(unit(z)), stop(unit(code))
    r = unit(u + q)
    size = jnp.linalg.norm(stop(code), axis=-1, keepdims=True)
    scale = size / jnp.maximum(jnp.linalg.norm(stop(z), axis=-1, keepdims=True), 1e-12)
    along, other = (r * z).sum(-1, keepdims=True), (u * z).sum(-1, keepdims=True)
    return scale * (z - 2 * r * along + 2 * q * other)


def drawn(
    key: Array, z: Float[Array, "M C"], rows: Float[Array, "V C"], temperature: float
) -> Int[Array, "M"]:
    """Codes drawn from softmax(z . row / temperature), of unit vectors (LARP: Wang et al., 2024).

    In the limit of temperature 0 the nearest.
    """
    scores = jnp.matmul(z, rows.T, precision="highest") / temperature
    return jax.random.categorical(key, scores, axis=-1).astype(jnp.int32)


def quantize(
    z: Float[Array, "*n C"],
    codebook: Float[Array, "V C"],
    normalize: bool = False,
    beta: float = 0.25,
    gradient: str = "straight",
    ids: Int[Array, "*n"] | None = None,
    weight: Float[Array, "*n"] | None = None,
) -> tuple[Float[Array, "*n C"], Int[Array, "*n"], dict]:
    """Nearest codebook row with a straight-through gradient.

    Args:
      z: encoder output.
      codebook: V rows.
      normalize: work on unit vectors.
      beta: weight of the commitment loss; the codebook loss has weight 1.
      gradient: that of the encoder: straight | rotation (`rotated`).
      ids: chosen codes; None for the nearest.
      weight: of each latent in the means; None for all alike.

    Returns:
      z_q, ids int32, {"codebook": mean|sg z - e|^2, "commitment": beta mean|z - sg e|^2}; means
      run over every element, channels included.
    """
    z = z.astype(jnp.float32)
    if normalize:
        z = unit(z)
    rows = unit(codebook) if normalize else codebook
    if ids is None:
        ids = nearest(z.reshape(-1, z.shape[-1]), rows).reshape(z.shape[:-1])
    code = jnp.take(rows, ids, axis=0)
    stop = jax.lax.stop_gradient
    aux = {
        "codebook": _mean(jnp.square(stop(z) - code), weight),
        "commitment": beta * _mean(jnp.square(z - stop(code)), weight),
    }
    values = rotated(z, code) if gradient == "rotation" else z + stop(code - z)
    return values, ids, aux


def _mean(x, weight):
    """Over every element; 0 where no latent has weight."""
    if weight is None:
        return x.mean()
    return (weight * x.mean(-1)).sum() / jnp.maximum(weight.sum(), 1e-12)


def entropy(
    z: Float[Array, "*n C"],
    codebook: Float[Array, "V C"],
    normalize: bool = False,
    temperature: float = 0.01,
) -> Float[Array, ""]:
    """Mean entropy of the soft assignments minus the entropy of their mean, in nats.

    Low when every position is sure of its code and all codes are used alike (Yu et al., "Language
    Model Beats Diffusion", 2023); assignments are softmax(-distance^2 / temperature). They are held
    for some latents at a time, and computed again for the gradient.
    """
    z, rows = z.astype(jnp.float32).reshape(-1, z.shape[-1]), codebook.astype(jnp.float32)
    if normalize:
        z, rows = unit(z), unit(rows)
    weight = search.parts(jnp.ones((len(z), 1)), ENTROPY_ROWS)[..., 0]
    parts = search.parts(z, ENTROPY_ROWS)

    @jax.checkpoint
    def add(total, part):
        z, weight = part
        norms = jnp.square(z).sum(-1)[:, None] + jnp.square(rows).sum(-1)[None]
        log_p = jax.nn.log_softmax((2.0 * z @ rows.T - norms) / temperature)
        p = jnp.exp(log_p) * weight[:, None]
        return (total[0] + p.sum(0), total[1] - (p * log_p).sum()), None

    start = (jnp.zeros(len(rows)), jnp.zeros(()))
    (mass, each), _ = jax.lax.scan(add, start, (parts, weight))
    mean = mass / len(z)
    return each / len(z) + (mean * jnp.log(mean + 1e-5)).sum()


def perplexity(ids: Int[Array, "*n"], size: int) -> Float[Array, ""]:
    """exp of the entropy of the codes' shares: `size` when all are used alike, 1 for one code."""
    share = jnp.zeros(size).at[ids.ravel()].add(1.0 / ids.size)
    return jnp.exp(-(share * jnp.log(jnp.maximum(share, 1e-12))).sum())


@dataclasses.dataclass(frozen=True)
class VQ(Codes):
    """A codebook; parameters {embedding[, counts, sums, seen]}, of which the latter three are kept
    by moving averages.

    Attributes:
      channels: width of a code.
      size: number of codes.
      normalize: codes and latents have unit length.
      beta: weight of the commitment loss.
      beta_codebook: weight of the codebook loss, 1 but for code that follows VQGAN's first release
        (which puts beta there); it is not read under update = 'ema'.
      entropy_weight: of the entropy loss.
      gradient: of the encoder, straight | rotation.
      update: of the codes: gradient | ema (upkeep.averaged), with `decay`.
      revive: what becomes of codes without use: none | random: below `revive_below` uses a batch,
        averaged with `decay`, they are drawn from the batch | anchor (upkeep.anchored).
      init_codes: uniform | normal | kaiming (uniform, of variance 2 / channels) | kmeans (of the
        first batch's latents).
      temperature: codes are drawn in training (`drawn`); 0 takes the nearest.
    """

    channels: int
    size: int
    normalize: bool
    beta: float
    beta_codebook: float
    entropy_weight: float
    gradient: str
    update: str
    decay: float
    revive: str
    revive_below: float
    init_codes: str
    temperature: float
    where: str

    def __post_init__(self):
        self.check_least(
            channels=1, size=2, beta=0, beta_codebook=0, entropy_weight=0, revive_below=0,
            temperature=0,
        )  # fmt: skip
        one_of = dict(gradient=GRADIENTS, update=UPDATES, revive=REVIVALS, init_codes=INITS)
        for name, allowed in one_of.items():
            self.check(name, getattr(self, name) in allowed, " | ".join(allowed))
        self.check("decay", 0 <= self.decay < 1, "at least 0 and below 1")
        fits = not (self.update == "ema" and (self.normalize or self.revive == "anchor"))
        self.check("update", fits, "gradient, with normalize or revive = 'anchor'")
        self.check("temperature", self.temperature == 0 or self.normalize, "0 without normalize")
        fits = (self.revive_below > 0) == (self.revive == "random")
        self.check("revive_below", fits, "above 0 under revive = 'random', else 0")

    def init(self, key: Array) -> dict:
        """Parameters; see the class."""
        if self.init_codes == "normal":
            params = {"embedding": jax.random.normal(key, (self.size, self.channels))}
        elif self.init_codes == "kaiming":
            rows = jax.random.uniform(key, (self.size, self.channels), minval=-1.0)
            params = {"embedding": (6 / self.channels) ** 0.5 * rows}
        else:
            params = {"embedding": init_codebook(key, self.size, self.channels)}
        if self.update == "ema":
            params["sums"] = params["embedding"]
        if self.update == "ema" or self.revive != "none":
            params["counts"] = jnp.full(self.size, 0.0 if self.revive == "anchor" else 1.0)
        if self.init_codes == "kmeans":
            params["seen"] = jnp.zeros(())
        return params

    def ids_to_values(self, params: dict, ids: Int[Array, "*n"]) -> Float[Array, "*n c"]:
        """See the function."""
        return ids_to_values(ids, params["embedding"], self.normalize)

    def disturbed(
        self, params: dict, z: Float[Array, "*n c"], key: Array, count: int
    ) -> Int[Array, "*n"]:
        """Ids drawn uniformly from the `count` codes nearest to each latent."""
        ends = z.astype(jnp.float32).reshape(-1, self.channels), params["embedding"]
        ends = map(unit, ends) if self.normalize else ends
        return among_nearest(key, *ends, count).reshape(z.shape[:-1])

    def quantize(
        self,
        params: dict,
        z: Array,
        rng: Array | None,
        train: bool = True,
        weight: Float[Array, "*n"] | None = None,
    ) -> Coded:
        """See the functions. Training draws from rng under `temperature`, `random` and kmeans.

        `weight` is that of each latent in the codebook and commitment losses.
        """
        z = z.astype(jnp.float32)
        flat, rows = jax.lax.stop_gradient(z.reshape(-1, z.shape[-1])), params["embedding"]
        if train and self.init_codes == "kmeans":
            rows = self._first(params, flat, rng)
        ids = None
        if train and self.temperature:
            key = jax.random.fold_in(rng, 0)
            ids = drawn(key, unit(flat), unit(jax.lax.stop_gradient(rows)), self.temperature)
            ids = ids.reshape(z.shape[:-1])
        values, ids, losses = quantize(
            z, rows, self.normalize, self.beta, self.gradient, ids, weight
        )
        losses["codebook"] = self.beta_codebook * losses["codebook"]
        if self.update == "ema":
            del losses["codebook"]
        if self.entropy_weight:
            losses["entropy"] = self.entropy_weight * entropy(z, rows, self.normalize)
        metrics = losses | {"perplexity": perplexity(ids, self.size)}
        moves = self._moves(params, rows, flat, ids.ravel(), rng) if train else {}
        return Coded(values, ids, sum(losses.values()), metrics, moves)

    def _first(self, params, z, rng):
        """The codebook, that of the first batch's k-means before any step."""
        old, key = params["embedding"], jax.random.fold_in(rng, 1)
        fresh = lambda: upkeep.kmeans(key, unit(z) if self.normalize else z, self.size)[0]
        change = jax.lax.cond(params["seen"] > 0, lambda: old, fresh) - old
        return old + jax.lax.stop_gradient(change)

    def _moves(self, params, rows, z, ids, rng):
        """See Coded: old parameters plus moves are the new ones."""
        new, rows = {}, jax.lax.stop_gradient(rows)
        if self.update == "ema":
            sums = params["sums"]
            if self.init_codes == "kmeans":
                sums = jnp.where(params["seen"] > 0, sums, rows)
            new["counts"], new["sums"], rows = upkeep.averaged(
                params["counts"], sums, z, ids, self.decay
            )
        elif self.revive == "random":
            count = upkeep.tally(z, ids, self.size)[0]
            new["counts"] = self.decay * params["counts"] + (1 - self.decay) * count
        elif self.revive == "anchor":
            rows, new["counts"] = upkeep.anchored(
                rows, params["counts"], z, ids, self.normalize, self.decay
            )
        if self.revive == "random":
            fresh = upkeep.drawn(jax.random.fold_in(rng, 2), z, self.size)
            rows = jnp.where(new["counts"][:, None] < self.revive_below, fresh, rows)
        if self.init_codes == "kmeans":
            new["seen"] = params["seen"] + 1.0
        if not new:
            return {}
        new["embedding"] = rows
        return {name: value - params[name] for name, value in new.items()}


def make(section, where: str) -> VQ:
    """From a config section; raises ConfigError for wrong keys or values."""
    return build(VQ, section, where, named=True)

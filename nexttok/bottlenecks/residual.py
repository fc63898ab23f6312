"""Several codes per position: residual codes, each of what the ones before leave (Lee et al.,
"Autoregressive Image Generation using Residual Quantization" (RQ-VAE), 2022), and codes of groups
of channels (product quantization)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.bottlenecks import vq
from nexttok.bottlenecks.contract import Coded, Codes
from nexttok.config import build
from nexttok.tokens import TokenSpec

KINDS = ("residual", "product")


def residual(
    z: Float[Array, "*n C"], codebooks: Float[Array, "K V C"]
) -> tuple[Float[Array, "K *n C"], Int[Array, "*n K"]]:
    """Partial sums of the codes after 1 .. K of them, and the codes; nearest at every depth."""
    left, total, sums, ids = jax.lax.stop_gradient(z), jnp.zeros_like(z), [], []
    for rows in codebooks:
        found = vq.nearest(left.reshape(-1, z.shape[-1]), rows).reshape(z.shape[:-1])
        code = jnp.take(rows, found, axis=0)
        total, left = total + code, left - jax.lax.stop_gradient(code)
        sums.append(total)
        ids.append(found)
    return jnp.stack(sums), jnp.stack(ids, -1)


@dataclasses.dataclass(frozen=True)
class Several(Codes):
    """K codes per position; parameters {embedding [K V, c]}.

    Attributes:
      kind: residual | product.
      channels: of the latent.
      size: number of codes of each codebook.
      codes: how many per position, K.
      shared: residual codes share one codebook.
      beta: weight of the commitment loss; the codebook loss has weight 1. Of residual codes both
        are means over depths of the distance between the latent and the partial sums.
      dropout: share of training examples that keep a random number of their residual codes
        (Zeghidour et al., "SoundStream", 2021).
    """

    kind: str
    channels: int
    size: int
    codes: int
    shared: bool
    beta: float
    dropout: float
    where: str

    def __post_init__(self):
        self.check("kind", self.kind in KINDS, " | ".join(KINDS))
        self.check_least(channels=1, size=2, codes=1, beta=0)
        product = self.kind == "product"
        fits = not product or self.channels % self.codes == 0
        self.check("codes", fits, f"a divisor of the {self.channels} channels")
        self.check("dropout", 0 <= self.dropout <= 1, "0 .. 1")
        for name in ("shared", "dropout"):
            self.check(name, not (product and getattr(self, name)), "off under kind = 'product'")

    @property
    def width(self) -> int:
        """Of a code."""
        return self.channels if self.kind == "residual" else self.channels // self.codes

    def spec(self, grid: tuple[int, ...]) -> TokenSpec:
        """A grid of K ids."""
        return TokenSpec(grid, self.size, self.channels, codes=self.codes)

    def init(self, key: Array) -> dict:
        """Parameters; see the class."""
        books = 1 if self.shared else self.codes
        rows = vq.init_codebook(key, self.size, self.width)
        more = [vq.init_codebook(jax.random.fold_in(key, i), self.size, self.width)
                for i in range(1, books)]  # fmt: skip
        return {"embedding": jnp.concatenate([rows, *more])}

    def codebooks(self, params: dict) -> Float[Array, "K V c"]:
        """One per code."""
        books = params["embedding"].reshape(-1, self.size, self.width)
        return jnp.broadcast_to(books, (self.codes, self.size, self.width))

    def ids_to_values(self, params: dict, ids: Int[Array, "*n K"]) -> Float[Array, "*n C"]:
        """The sum of residual codes (of the first k of K, when ids holds so many), or the codes of
        the groups side by side."""
        books = self.codebooks(params)
        parts = [jnp.take(books[i], ids[..., i], axis=0) for i in range(ids.shape[-1])]
        return sum(parts) if self.kind == "residual" else jnp.concatenate(parts, -1)

    def quantize(self, params: dict, z: Array, rng: Array | None, train: bool = True) -> Coded:
        """See the module. Training drops codes by rng."""
        z, books = z.astype(jnp.float32), self.codebooks(params)
        stop = jax.lax.stop_gradient
        if self.kind == "residual":
            sums, ids = residual(z, books)
            code, kept = sums[-1], sums
            if train and self.dropout:
                code = self._dropped(sums, rng)
        else:
            groups = jnp.split(z, self.codes, -1)
            found = [vq.quantize(g, rows) for g, rows in zip(groups, books, strict=True)]
            ids = jnp.stack([f[1] for f in found], -1)
            code = self.ids_to_values(params, ids)
            kept = code[None]
        aim, near = stop(z)[None], stop(kept)
        losses = {
            "codebook": jnp.square(aim - kept).mean(),
            "commitment": self.beta * jnp.square(z[None] - near).mean(),
        }
        used = [vq.perplexity(ids[..., i], self.size) for i in range(self.codes)]
        metrics = losses | {"perplexity": jnp.stack(used).mean()}
        return Coded(z + stop(code - z), ids, sum(losses.values()), metrics, {})

    def _dropped(self, sums, rng):
        """Partial sums of a random number of codes for some examples, of all for the others."""
        batch = sums.shape[1]
        some = jax.random.bernoulli(jax.random.fold_in(rng, 0), self.dropout, (batch,))
        depth = jax.random.randint(jax.random.fold_in(rng, 1), (batch,), 0, self.codes)
        depth = jnp.where(some, depth, self.codes - 1)
        return sums[depth, jnp.arange(batch)]


def make(section, where: str) -> Several:
    """From a config section; raises ConfigError for wrong keys or values."""
    return build(Several, section, where, named=True)

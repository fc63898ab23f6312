"""A codebook with an autoregressive prior that trains along with the tokenizer ("LARP: Tokenizing
Videos with a Learned Autoregressive Generative Prior", Wang et al., 2024).

The prior foretells every code from those before; its loss reaches the encoder through the vectors
that it reads, so that the latents take an order in which they are easy to foretell.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from nexttok.bottlenecks import vq
from nexttok.bottlenecks.contract import Coded, Codes
from nexttok.config import build, check
from nexttok.nn.prior import Prior
from nexttok.nn.transformer import TransformerConfig
from nexttok.rng import stream
from nexttok.tokens import TokenSpec


def ramped(seen: Array, ramp: int, top: float) -> Float[Array, ""]:
    """Rises from 0 to `top` over the first `ramp` steps, then stays; top at once without any."""
    return top * jnp.minimum(seen / ramp, 1.0) if ramp else jnp.full((), top)


def surprise(
    predict: Callable[[Array, int], Array],
    draw: Callable[[Array, int], Array],
    values: Float[Array, "B N c"],
    ids: Int[Array, "B N"],
    rows: Float[Array, "V c"],
    replaced: Bool[Array, "B M"],
    rounds: int,
) -> Float[Array, "B"]:
    """Cross entropy of all codes but the first, with scheduled sampling (Bengio et al., 2015).

    The first round reads the values; each later one reads, where `replaced`, codes that are drawn
    from what the round before predicted. Codebook rows have no gradient; drawn codes pass none.

    Args:
      predict: vectors [B, N - 1, c] and the round -> vectors of the same shape, whose products with
        the rows are logits.
      draw: logits [B, N - 1, V] and the round -> ids.
      values: codes with the gradient of the encoder; ids: which they are.
      rows: the codebook.
      replaced: of values[:, 1:], M = N - 1.
      rounds: at least 1.

    Returns:
      In nats per code, the mean over rounds.
    """
    rows, read, total = jax.lax.stop_gradient(rows), values, 0.0
    for i in range(rounds):
        logits = predict(read[:, :-1], i) @ rows.T
        log_p = jax.nn.log_softmax(logits, axis=-1)
        total -= jnp.take_along_axis(log_p, ids[:, 1:, None], axis=-1)[..., 0].mean(-1)
        if i + 1 < rounds:
            drawn = jnp.take(rows, draw(jax.lax.stop_gradient(logits), i), axis=0)
            rest = jnp.where(replaced[..., None], drawn, values[:, 1:])
            read = jnp.concatenate([values[:, :1], rest], axis=1)
    return total / rounds


@dataclasses.dataclass(frozen=True)
class PriorVQ(Codes):
    """Unit codes and their prior; parameters those of the codebook, {prior} and {seen}, the number
    of training steps, by which the share of replaced codes rises.

    Training draws codes under `codes.temperature`; tokens are the nearest codes always, which the
    official code takes under `set_vq_eval_deterministic` alone.

    Attributes:
      codes: the codebook, of unit vectors.
      length: latents of an example.
      width, depth, head_dim, dropout: of the prior (nn/transformer.py).
      weight: of its loss.
      rounds: of scheduled sampling; 1 for none.
      replaced: largest share of codes that later rounds replace, reached after `ramp` steps.
    """

    codes: vq.VQ
    length: int
    width: int
    depth: int
    head_dim: int
    dropout: float
    weight: float
    rounds: int
    replaced: float
    ramp: int
    where: str

    def __post_init__(self):
        check(self.codes.normalize, f"{self.codes.where}.normalize", False, "True under a prior")
        self.check_least(length=2, width=1, depth=1, head_dim=1, weight=0, rounds=1, ramp=0)
        fits = self.width % self.head_dim == 0
        self.check("head_dim", fits, f"a divisor of the width {self.width}")
        self.check("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        self.check("replaced", 0 <= self.replaced <= 1, "0 .. 1")

    @property
    def channels(self) -> int:
        """Of a code."""
        return self.codes.channels

    @property
    def size(self) -> int:
        """Number of codes."""
        return self.codes.size

    @functools.cached_property
    def prior(self) -> Prior:
        """Codes -> what comes next."""
        trunk = TransformerConfig(
            width=self.width, depth=self.depth, head_dim=self.head_dim, mlp_hidden=4 * self.width,
            activation="gelu", norm_affine=True, bias=True, mlp_bias=True, dropout=self.dropout,
            dropout_on=("embedding", "weights", "attention", "mlp"), init="normal02",
        )  # fmt: skip
        return Prior(trunk, self.length, self.channels)

    def spec(self, grid: tuple[int, ...]) -> TokenSpec:
        """A grid of codes; raises ConfigError unless it has `length` of them."""
        spec = self.codes.spec(grid)
        self.check("length", self.length == spec.length, f"the {spec.length} latents")
        return spec

    def init(self, key: Array) -> dict:
        """Parameters; see the class."""
        example = jnp.zeros((1, self.length - 1, self.channels))
        prior = self.prior.init(stream(key, "prior"), example)["params"]
        return self.codes.init(key) | {"prior": prior, "seen": jnp.zeros(())}

    def ids_to_values(self, params: dict, ids: Int[Array, "*n"]) -> Float[Array, "*n c"]:
        """Unit codes."""
        return self.codes.ids_to_values(params, ids)

    def quantize(self, params: dict, z: Array, rng: Array | None, train: bool = True) -> Coded:
        """See the module; the prior, its dropout and what it replaces are training's alone."""
        coded = self.codes.quantize(params, z, rng, train)
        if not train:
            return coded
        flat = coded.values.reshape(len(z), self.length, self.channels)
        share = ramped(params["seen"], self.ramp, self.replaced)
        shape = (len(z), self.length - 1)
        loss = surprise(
            functools.partial(self._predict, params, rng),
            lambda logits, i: jax.random.categorical(stream(rng, "drawn", i), logits),
            flat,
            coded.ids.reshape(len(z), self.length),
            vq.unit(params["embedding"]),
            jax.random.uniform(stream(rng, "replaced"), shape) < share,
            self.rounds,
        )
        metrics = coded.metrics | {"prior": loss.mean(), "replaced": share}
        moves = coded.moves | {"seen": jnp.ones(())}
        return coded._replace(loss=coded.loss + self.weight * loss, metrics=metrics, moves=moves)

    def _predict(self, params, rng, vectors, i):
        """The prior's answer in round i, with dropout."""
        rngs = {"dropout": stream(rng, "dropout", i)}
        return self.prior.apply({"params": params["prior"]}, vectors, True, rngs=rngs)


def make(section, where: str) -> PriorVQ:
    """From a config section, whose `codes` is that of a `vq`; raises ConfigError for wrong keys or
    values."""
    check("codes" in section, f"{where}.codes", None, "the section of a codebook")
    name, here = section.codes.get("name"), f"{where}.codes"
    check(name == "vq", f"{here}.name", name, "vq")
    rest = ConfigDict({k: v for k, v in section.items() if k != "codes"})
    return build(PriorVQ, rest, where, named=True, codes=vq.make(section.codes, here))

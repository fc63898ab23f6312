"""TCTS: a small network tells a masked generator's tokens from the data's.

A map of the data is masked as in the generator's training, the generator fills the gaps, and the
network says of every token whether it is the data's. While sampling, those that it takes for the
data's stay (samplers/revocable.py). (Lee et al., "Text-Conditioned Sampling Framework for
Text-to-Image Generation with Masked Generative Models", 2023. The paper publishes no code: the
selector's size is a choice, and it reads the generator's condition as the generator does.)
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from nexttok import views
from nexttok.contexts.mask import canvas
from nexttok.drafters.contract import dropped
from nexttok.generator import Generator
from nexttok.nn.linear import Linear
from nexttok.rng import categorical, stream
from nexttok.tokens import Tokens


class Odds(nn.Module):
    """Log-odds of every state."""

    @nn.compact
    def __call__(self, states: Float[Array, "B N D"]) -> Float[Array, "B N"]:
        return Linear(1, name="score")(states)[..., 0].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Selector:
    """`config.drafter` of name tcts: `init` and `loss` of contract.py, and `scorer`.

    Attributes:
      gen: the generator.
      layers: of the selector, which is otherwise made like the generator's backbone.
    """

    gen: Generator
    layers: int
    reads_halves = False

    @functools.cached_property
    def network(self):
        """The backbone."""
        gen = self.gen
        few = dataclasses.replace(gen.backbone, depth=self.layers)
        return gen.kind.make(few, gen.inputs, gen.dtype)

    def init(self, rng: Array) -> dict:
        """{backbone, score}."""
        tokens, label = jnp.zeros((1, self.gen.plan.length), jnp.int32), jnp.zeros((1,), jnp.int32)
        backbone = self.network.init(stream(rng, "backbone"), self._slots(tokens), label)["params"]
        states = jnp.zeros((1, 1, self.gen.backbone.width))
        return {"backbone": backbone} | Odds().init(stream(rng, "score"), states)["params"]

    def _slots(self, tokens):
        prefix = self.gen.backbone.prefix
        return canvas(tokens, jnp.zeros(tokens.shape, bool), prefix)

    def scores(
        self, params: dict, tokens: Int[Array, "B N"], label: Int[Array, "B"]
    ) -> Float[Array, "B N"]:
        """Log-odds that a token of a complete map is the data's."""
        read = {"params": params["backbone"]}, self._slots(tokens), label
        states = self.network.apply(*read)[0][:, self.gen.backbone.prefix :]
        return Odds().apply({"params": {"score": params["score"]}}, states)

    def filled(
        self, base: dict, ids: Int[Array, "B N"], label: Int[Array, "B"], rng: Array
    ) -> tuple[Int[Array, "B N"], Bool[Array, "B N"]]:
        """Maps of which the generator, whose parameters are `base`, has drawn a part, in one call
        and at temperature 1; and which part."""
        gen = self.gen
        hidden = gen.context.hidden(stream(rng, "hidden"), *ids.shape)
        logits = views.masked(gen, base, label, gen.plan).predict(ids, hidden)
        return jnp.where(hidden, categorical(stream(rng, "fill"), logits), ids), hidden

    def loss(
        self, params: dict, base: dict, tokens: Tokens, label: Int[Array, "B"], rng: Array
    ) -> tuple[Float[Array, "B N"], dict]:
        """Binary cross-entropy in nats; metrics: the share of tokens that it tells right."""
        label = dropped(self.gen, label, rng)
        ids, hidden = self.filled(base, tokens.ids, label, rng)
        scores = self.scores(params, ids, label)
        nats = optax.sigmoid_binary_cross_entropy(scores, (~hidden).astype(jnp.float32))
        return nats, {"right": ((scores > 0) != hidden).mean()}

    def scorer(self, params: dict, label: Int[Array, "B"]) -> Callable[[Array], Array]:
        """How sure revocable sampling is of the tokens [B, N] of complete maps."""
        return lambda tokens: self.scores(params, tokens, label)

"""EESD: the first layers of a generator, and one layer, norm and head that learn to do with them.

(Liu et al., "Speculative Decoding via Early-exiting for Faster LLM Inference with Thompson Sampling
Control Mechanism", 2024.) Layer, norm and head start as the generator's last ones; what is trained
is how they differ. They learn from the generator itself: the paper by texts that it wrote, here by
its law at every token of the data. Verification is the whole generator's, first layers included.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from nexttok import views
from nexttok.drafters.contract import against, dropped
from nexttok.generator import Generator
from nexttok.nn import early_exit
from nexttok.samplers.drafts.model import from_model


@dataclasses.dataclass(frozen=True)
class EarlyExit:
    """`config.drafter` of name eesd (see contract.py).

    Attributes:
      gen: the generator.
      layers: of it, that draft.
    """

    gen: Generator
    layers: int
    reads_halves = False

    @functools.cached_property
    def few(self) -> Generator:
        """The generator that drafts."""
        backbone = dataclasses.replace(self.gen.backbone, depth=self.layers + 1)
        return dataclasses.replace(self.gen, backbone=backbone, kind=early_exit)

    def init(self, rng):
        """Differences, none at first."""
        shapes = jax.eval_shape(lambda key: self._last(self.gen.init(key)), rng)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    @staticmethod
    def _last(base):
        """The generator's own last layer, norm and head."""
        backbone = base["backbone"]
        exit_ = jax.tree.map(lambda x: x[-1:], backbone["trunk"])
        kept = {name: backbone[name] for name in ("final",) if name in backbone}
        return {"backbone": {"exit": exit_, **kept}, "head": base["head"]}

    def merged(self, params: dict, base: dict) -> dict:
        """Parameters of `few`."""
        own = jax.tree.map(jnp.add, self._last(base), params)
        first = jax.tree.map(lambda x: x[: self.layers], base["backbone"]["trunk"])
        kept = {"embed": base["backbone"]["embed"], "trunk": first}
        return {"backbone": kept | own["backbone"], "head": own["head"]}

    def loss(self, params, base, tokens, label, rng):
        """Cross-entropy by the generator's law, [B, N]."""
        gen, few, label = self.gen, self.few, dropped(self.gen, label, rng)
        lesson, theirs = gen.lesson(tokens, rng), self.merged(params, base)
        law = gen.head.outputs(gen.head_params(base), gen.predicted(base, lesson, label))
        guess = few.head.outputs(few.head_params(theirs), few.predicted(theirs, lesson, label))
        nats, kept = against(jax.nn.softmax(law, axis=-1), guess)
        return nats, {"kept": kept.mean()}

    def guesser(self, params, base, label, plan, scale, mix, warp, choice):
        """Token by token, as many as the sampler's control lets through."""
        model = views.causal(self.few, self.merged(params, base), label, plan, scale, mix)
        return from_model(model, warp, choice.guesses, choice.controlled())

"""Head `categorical`: a softmax over the vocabulary."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.config import build, check
from nexttok.heads import guidance
from nexttok.heads.draw import Draw
from nexttok.nn.linear import INITS, Linear, scaled
from nexttok.nn.norms import layer_norm
from nexttok.nn.transformer import initializer
from nexttok.rng import categorical
from nexttok.tokens import TokenSpec

CERTAINTIES = ("", "top", "margin", "entropy")
INIT_NAMES = ("zeros", "normal02", "third")


class Logits(nn.Module):
    """Linear map to float32 logits.

    Attributes:
      vocab: V; a tied head has a class per row of the embedding instead.
      bias: of the map.
      kernel: initializer; zeros (the first loss is log V) | normal02 | third (of VAR, times 0.02).
      tied: a BERT head instead: dense, GELU, layer norm, then the transposed embedding and a bias.
    """

    vocab: int
    bias: bool
    kernel: str
    tied: bool

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B S D"], embedding: Float[Array, "V D"] | None = None
    ) -> Float[Array, "B S V"]:
        hidden, width = hidden.astype(jnp.float32), hidden.shape[-1]
        if not self.tied:
            init = scaled(initializer("third", width), 0.02)
            init = init if self.kernel == "third" else INITS[self.kernel]
            return Linear(self.vocab, self.bias, init, name="logits")(hidden)
        h = jax.nn.gelu(Linear(width, True, "normal02", name="transform")(hidden))
        scale = self.param("scale", nn.initializers.ones_init(), (width,))
        shift = self.param("bias", nn.initializers.zeros_init(), (width,))
        h = layer_norm(h, 1e-12) * scale[None, None] + shift[None, None]
        offset = self.param("offset", nn.initializers.zeros_init(), embedding.shape[:1])
        return h @ embedding.astype(jnp.float32).T + offset[None, None]


@dataclasses.dataclass(frozen=True)
class Categorical:
    """`config.generator.head` of name categorical.

    Attributes:
      vocab, width: of the tokens, of the hidden states.
      bias, init, tied: see Logits. The embedding of a tied head holds the tokens, then all else
        that enters by a vector of its own: labels and the mask (MaskGIT).
      smoothing: label smoothing e: target e / V + (1 - e) one-hot, in training only.
      reserved: classes of the softmax that are no tokens (special ids of a joint vocabulary, NBP),
        in front of them.

    Classes that are no tokens take part in the training softmax only: they are never drawn, and
    evaluation measures the distribution that is drawn from.
    """

    vocab: int
    width: int
    bias: bool
    init: str
    tied: bool
    smoothing: float
    reserved: int
    likelihood = True
    reads = (
        "temperature", "top_k", "top_p", "typical", "entropy_top_k", "certainty", "contrast",
        "contrast_k",
    )  # fmt: skip

    def __post_init__(self):
        allowed = "gmm, diffusion or flow, as these tokens are continuous"
        check(self.vocab > 0, "generator.head.name", "categorical", allowed)
        check(self.init in INIT_NAMES, "generator.head.init", self.init, " | ".join(INIT_NAMES))
        check(0 <= self.smoothing < 1, "generator.head.smoothing", self.smoothing, "0 .. below 1")
        fits = self.reserved == 0 or (self.reserved > 0 and not self.tied)
        check(fits, "generator.head.reserved", self.reserved,
              "0 when tied (the embedding tells), else at least 0")  # fmt: skip

    @property
    def _net(self):
        return Logits(self.reserved + self.vocab, self.bias, self.init, self.tied)

    def init_params(self, rng: Array, embedding: Float[Array, "V D"] | None = None) -> dict:
        """Parameters of the head; a tied one is told the embedding."""
        return self._net.init(rng, jnp.zeros((1, 1, self.width)), embedding)["params"]

    def outputs(self, params: dict, hidden: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Logits of the tokens."""
        return self._all(params, hidden)[..., self.reserved : self.reserved + self.vocab]

    def _all(self, params, hidden):
        # params hold "embedding" beside the head's own when it is tied
        own = {k: v for k, v in params.items() if k != "embedding"}
        return self._net.apply({"params": own}, hidden, params.get("embedding"))

    def loss(
        self,
        params: dict,
        hidden: Float[Array, "B S D"],
        target: Int[Array, "B S"],
        rng: Array,
        train: bool,
    ) -> tuple[Float[Array, "B S"], dict]:
        """Cross-entropy in nats per token; metrics {accuracy}."""
        del rng
        every = self._all(params, hidden)
        logits = every[..., self.reserved : self.reserved + self.vocab]
        picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        total = jax.nn.logsumexp(every if train else logits, axis=-1)
        nats = total - picked
        if train and self.smoothing:
            nats = (1 - self.smoothing) * nats + self.smoothing * (total - every.mean(-1))
        hits = (jnp.argmax(logits, -1) == target).astype(jnp.float32)
        return nats, {"accuracy": hits.mean()}

    def sample(
        self,
        params: dict,
        cond: Float[Array, "B S D"],
        uncond: Float[Array, "B S D"] | None,
        rng: Array,
        scale: Float[Array, ""],
        draw: Draw,
    ) -> tuple[Int[Array, "B S"], Float[Array, "B S"]]:
        """Draws ids from guided, then warped logits.

        Returns:
          ids and how certain each is before warping, which confidences compare; see `certainty`.
        """
        if uncond is None:
            logits = self.outputs(params, cond)
        elif self.tied or draw.mix is not None:
            every = self.outputs(params, cond), self.outputs(params, uncond)
            logits = guidance.cfg(*every, scale) if draw.mix is None else draw.mix(*every)
        else:  # guided hidden states have guided logits where the head is an affine map
            cond, uncond = cond.astype(jnp.float32), uncond.astype(jnp.float32)
            logits = self.outputs(params, guidance.cfg(cond, uncond, scale))
        ids = categorical(rng, draw.warp(logits))
        return ids, certainty(jax.nn.log_softmax(logits, axis=-1), ids, draw.certainty)


def certainty(
    log_probs: Float[Array, "*n V"], ids: Int[Array, "*n"], kind: str
) -> Float[Array, "*n"]:
    """How certain a position is: '' the log-probability of the token drawn there (MaskGIT); top
    that of the likeliest; margin the log of how much likelier it is than the second, which two
    near-equal modes cannot deceive; entropy, negative (Kim et al., "Train for the Worst, Plan for
    the Best: Understanding Token Ordering in Masked Diffusions", 2025)."""
    if kind == "":
        return jnp.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]
    probs = jnp.exp(log_probs)
    if kind == "entropy":
        return jnp.where(probs > 0, probs * log_probs, 0.0).sum(-1)
    if kind == "top":
        return log_probs.max(-1)
    first, second = jnp.moveaxis(jax.lax.top_k(probs, 2)[0], -1, 0)
    return jnp.log(jnp.maximum(first - second, jnp.finfo(jnp.float32).tiny))


def make(section, spec: TokenSpec, width: int) -> Categorical:
    """The head of a config section.

    Raises:
      ConfigError: a bad option, or continuous tokens.
    """
    return build(Categorical, section, "generator.head", named=True, vocab=spec.vocab, width=width)

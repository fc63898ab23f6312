"""Generator = backbone + plan + context + head."""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok import plans
from nexttok.config import build, check
from nexttok.nn.attention import Cache, empty_cache
from nexttok.nn.backbone import Backbone
from nexttok.nn.transformer import TransformerConfig
from nexttok.rng import stream
from nexttok.tokens import Tokens, TokenSpec

CONTEXTS, HEADS = ("shift",), ("categorical",)


@dataclasses.dataclass(frozen=True)
class Generator:
    """An autoregressive model of tokens; parameters are passed to every method.

    Attributes:
      spec: the tokens, as the tokenizer publishes them.
      num_classes: classes of the condition; 0 for none.
      dtype: compute dtype.
      plan, context, head: names (nexttok/plans.py, contexts/, heads/).
      width, depth, head_dim: of the backbone.
      norm, qk_norm, dropout, drop_path: of the backbone's blocks.
      class_dropout: share of training examples without a class (for guidance).
      remat, unroll: of the scanned layers.
    """

    spec: TokenSpec
    num_classes: int
    dtype: str
    plan: str
    context: str
    head: str
    width: int
    depth: int
    head_dim: int
    norm: str
    qk_norm: str
    dropout: float
    drop_path: float
    class_dropout: float
    remat: bool
    unroll: int

    def __post_init__(self):
        here = "generator"
        check(self.context in CONTEXTS, f"{here}.context", self.context, " | ".join(CONTEXTS))
        check(self.head in HEADS, f"{here}.head", self.head, " | ".join(HEADS))
        fits = self.head_dim > 0 and self.width > 0 and self.width % self.head_dim == 0
        allowed = f"a positive multiple of generator.head_dim = {self.head_dim}"
        check(fits, f"{here}.width", self.width, allowed)
        check(self.depth >= 1, f"{here}.depth", self.depth, "at least 1")
        check(self.norm in ("layer", "rms"), f"{here}.norm", self.norm, "layer | rms")
        norms = ("none", "layer", "rms")
        check(self.qk_norm in norms, f"{here}.qk_norm", self.qk_norm, " | ".join(norms))
        for name in ("dropout", "drop_path", "class_dropout"):
            rate = getattr(self, name)
            check(0 <= rate < 1, f"{here}.{name}", rate, "at least 0 and below 1")
        self.context_fns.validate(self.full_plan)
        self.head_fns.net(self.spec)

    @functools.cached_property
    def full_plan(self) -> plans.Plan:
        """The plan of all tokens."""
        return plans.make(self.plan, self.spec.grid)

    @functools.cached_property
    def context_fns(self) -> ModuleType:
        """Functions of nexttok.contexts.<context>."""
        return importlib.import_module(f"nexttok.contexts.{self.context}")

    @functools.cached_property
    def head_fns(self) -> ModuleType:
        """Functions of nexttok.heads.<head>."""
        return importlib.import_module(f"nexttok.heads.{self.head}")

    @functools.cached_property
    def backbone(self) -> Backbone:
        """The network between context and head."""
        config = TransformerConfig(
            width=self.width,
            depth=self.depth,
            head_dim=self.head_dim,
            mlp_hidden=4 * self.width,
            norm=self.norm,
            norm_affine=True,
            qk_norm=self.qk_norm,
            dropout=self.dropout,
            drop_path=self.drop_path,
            init="normal02",
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
        )
        return Backbone(config, self.spec.vocab, self.spec.length, self.num_classes)

    def init(self, rng: Array) -> dict:
        """Parameters {backbone, head}."""
        one = jnp.zeros((1, 1), jnp.int32)
        zero = jnp.zeros((1,), jnp.int32)
        backbone = self.backbone.init(stream(rng, "backbone"), one, zero, zero, zero)["params"]
        hidden = jnp.zeros((1, 1, self.width))
        head = self.head_fns.net(self.spec).init(stream(rng, "head"), hidden)["params"]
        return {"backbone": backbone, "head": head}

    def predict(self, params: dict, hidden: Float[Array, "B S D"]) -> Array:
        """What the head's network makes of hidden states: logits [B, S, V]."""
        return self.head_fns.net(self.spec).apply({"params": params["head"]}, hidden)

    def teacher_forced(
        self, params: dict, ids: Int[Array, "B N"], label: Int[Array, "B"], rng: Array | None = None
    ) -> Array:
        """Head outputs of all slots, in generation order, given the true tokens.

        Args:
          params: {backbone, head}.
          ids: tokens by index.
          label: class, -1 for none.
          rng: dropout key when training, None at evaluation.
        """
        ordered = jnp.take(ids, jnp.asarray(self.full_plan.order), axis=1)
        slots = jnp.arange(self.spec.length, dtype=jnp.int32)
        steps = jnp.asarray(self.context_fns.steps(self.full_plan))
        rngs = {} if rng is None else {"dropout": stream(rng, "dropout")}
        hidden, _ = self.backbone.apply(
            {"params": params["backbone"]}, self.context_fns.inputs(ordered), slots, steps, label,
            train=rng is not None, rngs=rngs,
        )  # fmt: skip
        return self.predict(params, hidden)

    def loss(
        self, params: dict, tokens: Tokens, label: Int[Array, "B"], rng: Array | None
    ) -> tuple[Float[Array, "B N"], dict]:
        """Negative log-likelihood.

        Args:
          params: {backbone, head}.
          tokens: ids [B, N].
          label: class [B]; dropped at random in training.
          rng: training key, or None at evaluation.

        Returns:
          Nats per token [B, N] in generation order, metrics of the head.
        """
        if rng is not None and self.class_dropout:
            drop = jax.random.bernoulli(stream(rng, "label"), self.class_dropout, label.shape)
            label = jnp.where(drop, -1, label)
        outputs = self.teacher_forced(params, tokens.ids, label, rng)
        target = jnp.take(tokens.ids, jnp.asarray(self.full_plan.order), axis=1)
        return self.head_fns.loss(outputs, target)

    def init_cache(self, batch: int, slots: int) -> Cache:
        """An empty key-value cache for `slots` slots."""
        heads = self.width // self.head_dim
        return empty_cache(self.depth, batch, slots, heads, self.head_dim, self.dtype)

    def decode_step(
        self,
        params: dict,
        ids: Int[Array, "B S"],
        first: Int[Array, ""],
        cache: Cache,
        label: Int[Array, "B"],
    ) -> tuple[Array, Cache]:
        """Head outputs of slots first .. first + S - 1 with inputs `ids`, reading the cache."""
        at = first + jnp.arange(ids.shape[1], dtype=jnp.int32)
        steps = jnp.take(jnp.asarray(self.context_fns.steps(self.full_plan)), at)
        hidden, cache = self.backbone.apply(
            {"params": params["backbone"]}, ids, at, steps, label, cache
        )
        return self.predict(params, hidden), cache

    def step_fn(
        self, params: dict, label: Int[Array, "B"], scale: float, warp: Callable[[Array], Array]
    ):
        """The executor's step (samplers/executor.py): slots, network, guidance, sampling.

        With scale != 1 conditional and unconditional examples run as one batch of 2B, so the cache
        must have been made for 2B.
        """
        guided = scale != 1.0
        labels = jnp.concatenate([label, jnp.full_like(label, -1)]) if guided else label

        def step(ids, first, size, cache, key):
            inputs = self.context_fns.slots(ids, first, size)
            inputs = jnp.concatenate([inputs, inputs]) if guided else inputs
            outputs, cache = self.decode_step(params, inputs, first, cache, labels)
            cond, uncond = jnp.split(outputs, 2) if guided else (outputs, None)
            return self.head_fns.sample(cond, uncond, key, scale, warp), cache

        return step


def make(section, spec: TokenSpec, num_classes: int, dtype: str = "float32") -> Generator:
    """A generator from `config.generator` for the tokens a tokenizer publishes.

    Raises:
      ConfigError: unknown or missing key, wrong type, or parts that do not fit together.
    """
    given = dict(spec=spec, num_classes=num_classes, dtype=dtype)
    return build(Generator, section, "generator", **given)

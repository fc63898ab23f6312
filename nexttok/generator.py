"""Generator = backbone + plan + context + head."""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok import contexts, heads, plans
from nexttok.config import build, check, check_keys, component, names, part
from nexttok.contexts.contract import Calls, Lesson
from nexttok.heads import guidance
from nexttok.heads.draw import Draw
from nexttok.nn import backbones
from nexttok.nn.backbones.config import BackboneConfig, Inputs
from nexttok.nn.cache import Cache, ragged
from nexttok.nn.slots import Slots
from nexttok.rng import stream
from nexttok.steps import At, Step, random_order
from nexttok.tokens import Tokens, TokenSpec

SECTIONS = ("plan", "context", "head", "backbone", "class_dropout")


@dataclasses.dataclass(frozen=True)
class Generator:
    """An autoregressive model of tokens; parameters are passed to every method.

    Attributes:
      spec: the tokens, as the tokenizer publishes them.
      num_classes: classes of the condition; 0 for none.
      plan: which tokens are predicted together, and in which order.
      context: what a slot sees (nexttok/contexts).
      head: what is predicted (nexttok/heads).
      backbone: its config; `kind` names its module (nexttok/nn/backbones).
      class_dropout: share of training examples without a class (for guidance).
      dtype: compute dtype.
    """

    spec: TokenSpec
    num_classes: int
    plan: plans.Plan
    context: Any
    head: Any
    backbone: BackboneConfig
    kind: ModuleType
    class_dropout: float
    dtype: str

    def __post_init__(self):
        rate = self.class_dropout
        check(0 <= rate < 1, "generator.class_dropout", rate, "at least 0 and below 1")
        self._check_context()
        noised = self.context.needs(self.plan).noised
        name = type(self.head).__name__.lower()
        check(noised == (name == "flow"), "generator.head.name", name,
              "flow with context noise, another head with any other context")  # fmt: skip
        surest = self.plan.kind == "confidence" and name == "diffusion"
        check(not surest, "generator.head.name", name,
              "gmm, as a plan by confidence needs probabilities")  # fmt: skip
        separate = getattr(self.context, "layout", "") == "separate"
        cross = self.kind.__name__.endswith("cross_decoder")
        check(separate == cross, "generator.backbone.name", self.kind.__name__.split(".")[-1],
              "cross_decoder exactly with context query of layout separate")  # fmt: skip
        continues = getattr(self.context, "continues", False)
        check(continues or not self.plan.given, "generator.plan.given", self.plan.given,
              "0, as only the contexts shift and block go on from given steps")  # fmt: skip
        lost = "start" in self.backbone.condition and not self.inputs.start
        check(not lost, "generator.backbone.condition", self.backbone.condition,
              "prefix, adaln or none, as no slot is the start")  # fmt: skip
        if "rope" in self.backbone.positions:
            self.backbone.rotary(self.inputs)

    def _check_context(self):
        """Raises ConfigError unless the context can serve the plan, the tokens and the backbone."""
        name = type(self.context).__name__.lower()
        reasons = {n: component(contexts, n).refusal(self.plan, self.spec) for n in names(contexts)}
        fitting = " | ".join(n for n, reason in reasons.items() if not reason) or "another plan"
        check(not reasons[name], "generator.context.name", name, f"{fitting}, as {reasons[name]}")
        prefix = self.backbone.prefix
        check(not prefix or self.context.takes_prefix, "generator.backbone.prefix", prefix,
              f"0 with context {name}")  # fmt: skip

    @functools.cached_property
    def inputs(self) -> Inputs:
        """The slots the backbone is given."""
        needs = self.context.needs(self.plan)
        return Inputs(
            vocab=self.spec.vocab,
            channels=self.spec.channels,
            grid=self.spec.grid,
            scales=self.spec.scales,
            slots=self.backbone.prefix + needs.slots,
            levels=needs.levels,
            classes=self.num_classes,
            query=needs.query,
            fillers=needs.fillers,
            start=needs.start,
            noised=needs.noised,
        )

    @functools.cached_property
    def network(self) -> Any:
        """The backbone's module."""
        return self.kind.make(self.backbone, self.inputs, self.dtype)

    @property
    def has_likelihood(self) -> bool:
        """The loss is an exact negative log-likelihood (of one order, where orders are random)."""
        return self.context.likelihood and getattr(self.head, "likelihood", False)

    @property
    def teaching(self) -> plans.Plan:
        """The plan of training: that of sampling, but random orders are taught token by token."""
        if self.plan.kind == "random" and self.context.likelihood:
            return dataclasses.replace(self.plan, sizes=(1,) * self.plan.length)
        return self.plan

    def init(self, rng: Array) -> dict:
        """Parameters {backbone, head}."""
        n = self.spec.length
        tokens = Tokens(
            ids=jnp.zeros((1, n), jnp.int32) if self.spec.vocab else None,
            values=jnp.zeros((1, n, self.spec.channels)) if self.spec.channels else None,
        )
        slots = self.lesson(tokens, stream(rng, "lesson")).slots
        label = jnp.zeros((1,), jnp.int32)
        backbone = self.network.init(stream(rng, "backbone"), slots, label)["params"]
        table = (self._table(backbone),) if self._tied else ()
        return {"backbone": backbone, "head": self.head.init_params(stream(rng, "head"), *table)}

    def lesson(self, tokens: Tokens, rng: Array, plan: plans.Plan | None = None) -> Lesson:
        """What is taught for tokens by index; `rng` draws orders, masks and noise."""
        plan = self.teaching if plan is None else plan
        some = tokens.values if tokens.ids is None else tokens.ids
        order = jnp.asarray(plan.order)[None]
        if plan.kind == "random" and self.context.likelihood:
            order = random_order(stream(rng, "order"), some.shape[0], plan.length)
        return self.lesson_in(tokens, order, plan, rng)

    def lesson_in(self, tokens: Tokens, order: Array, plan: plans.Plan, rng: Array) -> Lesson:
        """As `lesson`, in a given order [B, N] or [1, N]."""
        if self.context.likelihood or plan.kind == "fixed":
            tokens = jax.tree.map(lambda x: _ordered(x, order), tokens)
        return self.context.lesson(plan, tokens, order, self.backbone.prefix, rng)

    def hidden(
        self, params: dict, slots: Slots, label: Int[Array, "B"], rng: Array | None = None
    ) -> Float[Array, "B S D"]:
        """Hidden states of the slots; `rng` is the dropout key in training."""
        rngs = {} if rng is None else {"dropout": rng}
        return self.network.apply(
            {"params": params["backbone"]}, slots, label, train=rng is not None, rngs=rngs
        )[0]

    def predicted(self, params: dict, lesson: Lesson, label: Int[Array, "B"], rng=None) -> Array:
        """Hidden states that predict lesson.target, [B, N, D]."""
        first, stride = lesson.outputs
        last = first + stride * lesson.target.shape[1]
        return self.hidden(params, lesson.slots, label, rng)[:, first:last:stride]

    def loss(
        self, params: dict, tokens: Tokens, label: Int[Array, "B"], rng: Array | None
    ) -> tuple[Float[Array, "B N"], dict]:
        """Loss of every token: nats where the head has a likelihood, else the head's own.

        Args:
          params: {backbone, head}.
          tokens: by index.
          label: class [B], -1 for none; dropped at random in training.
          rng: training key, or None at evaluation (orders and masks are then always the same).

        Returns:
          [B, N] in the order of the lesson, metrics of the head; N leaves out what the plan gives.
        """
        train = rng is not None
        if train and self.class_dropout:
            drop = jax.random.bernoulli(stream(rng, "label"), self.class_dropout, label.shape)
            label = jnp.where(drop, -1, label)
        key = rng if train else jax.random.key(0)
        lesson = self.lesson(tokens, key)
        hidden = self.predicted(params, lesson, label, stream(key, "dropout") if train else None)
        losses, metrics = self.head.loss(
            self.head_params(params), hidden, lesson.target, stream(key, "head"), train
        )
        return losses if lesson.weight is None else losses * lesson.weight, metrics

    def head_params(self, params: dict) -> dict:
        """The head's parameters, with the embedding where it is shared."""
        if not self._tied:
            return params["head"]
        return params["head"] | {"embedding": self._table(params["backbone"])}

    @property
    def _tied(self):
        return getattr(self.head, "tied", False)

    @staticmethod
    def _table(backbone):
        """One row per token, label and mask, as far as they are embedded."""
        rows = backbone["embed"]
        names = ("embedding", "class_embedding", "mask_token")
        return jnp.concatenate([rows[name] for name in names if name in rows])

    def init_cache(self, batch: int, plan: plans.Plan, given: int = 0) -> Cache | None:
        """An empty key-value cache for the generation of a plan; None where nothing is cached."""
        slots = self.context.cache_slots(plan, given)
        if not slots:
            return None
        return self.kind.init_cache(self.backbone, batch, self.backbone.prefix + slots, self.dtype)

    def step(
        self,
        params: dict,
        label: Int[Array, "B"],
        plan: plans.Plan,
        draw: Draw,
        scale: Callable[[At], Array] | None = None,
        confidence: float = 0.0,
        advance: Callable[..., Any] | None = None,
        forced: tuple[Array, Array] | None = None,
        reuse: tuple[tuple[int, ...], ...] = (),
    ) -> Step:
        """The executor's step (samplers/executor.py): slots, network, guidance, sampling.

        Args:
          params: {backbone, head}.
          label: class of every sample.
          plan: of the generation.
          draw: sampling options.
          scale: guidance of a step; None for no unconditional call. Otherwise conditional and
            unconditional examples run as one batch of 2B: the cache must have been made for 2B.
          confidence: see contexts/mask.py.
          advance: of a tokenizer with scales.
          forced: (known [N], tokens [B, N, ...]), both by index: known tokens replace drawn ones.
          reuse: sizes of the steps that each step of the plan was merged from (contexts/mask.py).
        """
        labels = label if scale is None else jnp.concatenate([label, jnp.full_like(label, -1)])
        weights, order = self.head_params(params), jnp.asarray(plan.order)

        def net(slots, cache):
            slots = slots if scale is None else slots.twice()
            hidden, cache = self.network.apply({"params": params["backbone"]}, slots, labels, cache)
            cond, other = (hidden, None) if scale is None else jnp.split(hidden, 2)
            return cond, other, cache

        def sample(hidden, other, at, key):
            strength = jnp.ones(()) if scale is None else scale(at)
            drawn, sure = self.head.sample(weights, hidden, other, key, strength, draw.at(at.index))
            if forced is not None:
                places = jax.lax.dynamic_slice_in_dim(order, at.first, at.size)
                keep, true = forced[0][places][None], forced[1][:, places]
                drawn = jnp.where(keep if drawn.ndim == 2 else keep[..., None], true, drawn)
            return drawn, sure

        def velocity(hidden, other, at):
            cond = self.head.velocity(weights, hidden)
            if other is None:
                return cond
            return guidance.cfg(cond, self.head.velocity(weights, other), scale(at))

        def integrate(first, velocity, noise, key, at):
            return self.head.integrate(first, velocity, noise, key, draw.at(at.index))

        solver_calls = (draw.solver_steps or self.head.steps) if self.inputs.noised else 1

        def empty(batch, slots):
            rows = batch * (1 if scale is None else 2)
            return ragged(self.kind.init_cache(self.backbone, rows, slots, self.dtype))

        calls = Calls(
            net, sample, velocity, integrate, solver_calls, confidence, advance, empty, reuse
        )
        return self.context.step(plan, calls, self.backbone.prefix)


def _ordered(x, order):
    order = jnp.broadcast_to(order, (x.shape[0], order.shape[1]))
    return jnp.take_along_axis(x, order if x.ndim == 2 else order[..., None], axis=1)


def make(section, spec: TokenSpec, num_classes: int, dtype: str = "float32") -> Generator:
    """A generator from `config.generator` for the tokens a tokenizer publishes.

    Raises:
      ConfigError: unknown or missing key, wrong type, or parts that do not fit together.
    """
    here = "generator"
    check_keys(section, SECTIONS, here)
    check(spec.codes == 1, "tokenizer.bottleneck", f"of {spec.codes} ids per position",
          "one of a single id, as every head draws one; or stages without 'generator'")  # fmt: skip
    plan = plans.make(build(plans.PlanConfig, section.plan, f"{here}.plan"), spec)
    context = part(contexts, section.context, f"{here}.context").make(section.context)
    kind = part(backbones, section.backbone, f"{here}.backbone")
    backbone = build(BackboneConfig, section.backbone, f"{here}.backbone", named=True)
    head = part(heads, section.head, f"{here}.head").make(section.head, spec, backbone.width)
    rate = section.class_dropout
    check(isinstance(rate, int | float), f"{here}.class_dropout", rate, "a number")
    return Generator(spec, num_classes, plan, context, head, backbone, kind, float(rate), dtype)

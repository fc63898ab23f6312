"""Optimizers, schedules and the moving average of weights."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nexttok.config import check
from nexttok.mesh import path_name

OPTIMIZERS, SCHEDULES = ("adamw", "adam", "lion", "muon"), ("cosine", "linear", "constant")

# Never decayed, whatever their rank: embeddings, positions, learned tokens, biases, scales, gates.
NO_DECAY = re.compile(
    r"(bias|scale|gamma|gate[12]|embedding|sums|numbers|positions|registers|sos|\w+_tokens?)$"
)


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """`config.train.<stage>`: see configs/common.py for each key."""

    steps: int
    batch_size: int
    accumulate: int
    optimizer: str
    learning_rate: float
    final_learning_rate: float
    schedule: str
    warmup: int
    rates: tuple[str, ...]
    weight_decay: float
    b1: float
    b2: float
    clip: float
    ema: float
    log_every: int
    save_every: int
    keep: int


def make_schedule(cfg: StageConfig, where: str) -> optax.Schedule:
    """Linear warm-up from 0, then cosine to `final_learning_rate`, linear, or constant.

    "linear" holds the rate for a twentieth of the rest, then falls in a line to
    `final_learning_rate` (`lin0` of VAR, Tian et al., 2024).

    Raises:
      ConfigError: unknown schedule, or a value out of range.
    """
    check(cfg.schedule in SCHEDULES, f"{where}.schedule", cfg.schedule, " | ".join(SCHEDULES))
    check(cfg.learning_rate > 0, f"{where}.learning_rate", cfg.learning_rate, "above 0")
    check(0 <= cfg.warmup <= cfg.steps, f"{where}.warmup", cfg.warmup, f"0 .. {cfg.steps}")
    low, high = cfg.final_learning_rate, cfg.learning_rate
    check(0 <= low <= high, f"{where}.final_learning_rate", low, f"0 .. {high}")
    rest = max(1, cfg.steps - cfg.warmup)
    if cfg.schedule == "cosine":
        after = optax.cosine_decay_schedule(high, rest, low / high)
    elif cfg.schedule == "linear":
        held = rest // 20
        after = optax.linear_schedule(high, low, rest - held, held)
    else:
        after = optax.constant_schedule(high)
    schedule = optax.join_schedules(
        [optax.linear_schedule(0.0, high, max(1, cfg.warmup)), after], [cfg.warmup]
    )

    def rate(step):
        with jax.numpy_dtype_promotion("standard"):
            return schedule(step)

    return rate


def decay_mask(params: Any) -> Any:
    """True for the matrices that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and not NO_DECAY.search(path_name(path)), params
    )


def permissive(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer under standard dtype promotion, which optax's own arithmetic needs.

    Callers may then run with jax_numpy_dtype_promotion=strict.
    """

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def make_optimizer(cfg: StageConfig, where: str) -> optax.GradientTransformation:
    """Clipping, then the optimizer with its schedule; decay on matrices only.

    Raises:
      ConfigError: unknown optimizer, or a value out of range.
    """
    check(cfg.optimizer in OPTIMIZERS, f"{where}.optimizer", cfg.optimizer, " | ".join(OPTIMIZERS))
    check(cfg.weight_decay >= 0, f"{where}.weight_decay", cfg.weight_decay, "at least 0")
    check(cfg.clip >= 0, f"{where}.clip", cfg.clip, "at least 0 (0 for none)")
    for name in ("b1", "b2"):
        check(0 <= getattr(cfg, name) < 1, f"{where}.{name}", getattr(cfg, name), "0 .. 1, below 1")
    rate = make_schedule(cfg, where)
    betas = dict(b1=cfg.b1, b2=cfg.b2)
    if cfg.optimizer == "adamw":
        core = optax.adamw(rate, **betas, weight_decay=cfg.weight_decay, mask=decay_mask)
    elif cfg.optimizer == "adam":
        core = optax.adam(rate, **betas)
    elif cfg.optimizer == "lion":
        core = optax.lion(rate, **betas, weight_decay=cfg.weight_decay, mask=decay_mask)
    else:
        core = muon(rate, **betas, weight_decay=cfg.weight_decay)
    parts = [optax.clip_by_global_norm(cfg.clip)] if cfg.clip else []
    return permissive(optax.chain(*parts, core, *_rates(cfg.rates, f"{where}.rates")))


def _rates(rates: tuple[str, ...], where: str) -> list[optax.GradientTransformation]:
    """Multiplies updates, and so the learning rate, of parameters by path: "pattern:factor".

    Raises:
      ConfigError: no such pair; and, on initialization, a pattern that no parameter's path has.
    """
    pairs = []
    for rate in rates:
        pattern, _, factor = rate.rpartition(":")
        try:
            pairs.append((re.compile(pattern), float(factor)))
            fits = bool(pattern) and float(factor) >= 0
        except (ValueError, re.error):
            fits = False
        check(
            fits, where, rate, "a pattern of paths and a factor of at least 0: 'discriminator:0.3'"
        )
    if not pairs:
        return []

    def init(params):
        paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern, _ in pairs:
            found = any(pattern.search(path) for path in paths)
            check(found, where, pattern.pattern, "a pattern that some parameter's path has")
        return optax.EmptyState()

    def scaled(path, update):
        name = path_name(path)
        factor = math.prod(factor for pattern, factor in pairs if pattern.search(name))
        return update * jnp.asarray(factor, update.dtype)

    def update(updates, state, params=None):
        del params
        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return [optax.GradientTransformation(init, update)]


def muon(
    rate: optax.Schedule, b1: float, b2: float, weight_decay: float
) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) on weight matrices, scanned ones layer by layer, and on kernels of
    convolutions as matrices from windows to channels; Adam elsewhere.

    Updates are scaled to Adam's RMS (Liu et al., "Muon is Scalable for LLM Training", 2025), so
    one learning rate serves both.
    """

    def dimensions(params):
        def one(path, leaf):
            if NO_DECAY.search(path_name(path)) or leaf.ndim not in (2, 3, 4):
                return None
            inputs = (0, 1, 2) if leaf.ndim == 4 else leaf.ndim - 2
            return optax.contrib.MuonDimensionNumbers(inputs, leaf.ndim - 1)

        return jax.tree_util.tree_map_with_path(one, params)

    return optax.contrib.muon(
        rate, adam_b1=b1, adam_b2=b2, weight_decay=weight_decay,
        weight_decay_mask=decay_mask, adam_weight_decay=0.0, consistent_rms=0.2,
        muon_weight_dimension_numbers=dimensions,
    )  # fmt: skip


def ema_update(ema: Any, params: Any, decay: float, step: Int[Array, ""]) -> Any:
    """d ema + (1 - d) params with d = min(decay, (1 + step) / (10 + step))."""
    step = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(
        lambda a, b: d.astype(a.dtype) * a + (1.0 - d).astype(a.dtype) * b, ema, params
    )

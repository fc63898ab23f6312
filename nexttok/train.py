"""The one training loop: anything with a loss trains here, and resumes anywhere."""

import dataclasses
import functools
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from nexttok import distributed
from nexttok.checkpoint import Checkpoints
from nexttok.mesh import host_to_device, param_shardings, replicated
from nexttok.optim import StageConfig, ema_update, make_optimizer, make_schedule
from nexttok.profiling import Tracer, ideal_seconds
from nexttok.progress import Progress
from nexttok.rng import abstract_key, stream
from nexttok.writers import Writer

log = logging.getLogger("nexttok")


class NonFiniteError(RuntimeError):
    """The loss or gradient stopped being finite."""


class Preempted(SystemExit):
    """SIGTERM arrived; the state was saved. The exit status is 143 = 128 + SIGTERM."""

    def __init__(self, message: str):
        super().__init__(143)
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclasses.dataclass(frozen=True)
class Task:
    """A trainable as the loop sees it.

    Attributes:
      name: stage name.
      init: key -> parameters.
      loss: (params, frozen, batch, key) -> (loss of shape [B, ...], scalar metrics); beside the
        loader's entries the batch holds "step", int32 [], the number of finished steps. Metrics may
        hold "moves", a tree of changes that are added to parameters (moving averages, counts, codes
        that are drawn anew): means over micro-batches.
      tokens: of an example, 0 where that means nothing.
      flops: (params, frozen, batch) -> FLOPs that the model asks for in one step; 0 if unknown.
    """

    name: str
    init: Callable[[Array], Any]
    loss: Callable[[Any, Any, dict, Array], tuple[Array, dict]]
    tokens: int = 0
    flops: Callable[[Any, Any, dict], float] = lambda *_: 0.0


@flax.struct.dataclass
class TrainState:
    """All that a step changes, as arrays or (abstract) their shapes.

    Attributes:
      step: int32 [], finished steps.
      params, opt, ema: parameters, optimizer state, moving average ({} without one).
      rng: constant typed key; step k draws from fold(rng, k).
    """

    step: Any
    params: Any
    opt: Any
    ema: Any
    rng: Any


def _initializer(task: Task, cfg: StageConfig) -> Callable[[Array], TrainState]:
    optimizer = make_optimizer(cfg, f"train.{task.name}")

    def init(key: Array) -> TrainState:
        params = task.init(stream(key, "init"))
        # The average starts as a copy: state buffers are donated, so no two may alias.
        ema = jax.tree.map(jnp.copy, params) if cfg.ema else {}
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, optimizer.init(params), ema, stream(key, "steps"))

    return init


def abstract_state(task: Task, cfg: StageConfig, mesh) -> TrainState:
    """Shapes and shardings of a stage's state (what a checkpoint restores into); nothing is run."""
    shapes = jax.eval_shape(_initializer(task, cfg), abstract_key())
    shardings = TrainState(
        step=replicated(mesh),
        params=param_shardings(mesh, shapes.params),
        opt=param_shardings(mesh, shapes.opt),
        ema=param_shardings(mesh, shapes.ema),
        rng=replicated(mesh),
    )
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings
    )


def init_state(task: Task, cfg: StageConfig, seed: int, abstract: TrainState) -> TrainState:
    """The sharded initial state of a stage."""
    key = stream(jax.random.key(seed), task.name)
    shardings = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(_initializer(task, cfg), out_shardings=shardings)(key)


def loss_and_grad(task: Task, params, frozen, batch: dict, key: Array, accumulate: int):
    """Mean loss, metrics and gradients over `accumulate` equal micro-batches.

    Micro-batch i draws from fold(key, i), so no two share masks or noise. A scalar entry of the
    batch (the step) is every micro-batch's.
    """

    def scalar(params, part, key):
        loss, metrics = task.loss(params, frozen, part, key)
        return loss.mean(), metrics

    grad = jax.value_and_grad(scalar, has_aux=True)
    if accumulate == 1:
        (loss, metrics), grads = grad(params, batch, stream(key, 0))
        return loss, metrics, grads

    def split(x):
        if x.ndim == 0:
            return jnp.broadcast_to(x, (accumulate,))
        return x.reshape(accumulate, -1, *x.shape[1:])

    parts = jax.tree.map(split, batch)

    def add(total, part):
        i, part = part
        (loss, metrics), grads = grad(params, part, stream(key, i))
        return jax.tree.map(jnp.add, total, (loss, metrics, grads)), None

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(lambda: (lambda o: (*o[0], o[1]))(grad(params, first, stream(key, 0))))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    index = jnp.arange(accumulate, dtype=jnp.uint32)
    total, _ = jax.lax.scan(add, zeros, (index, parts))
    return jax.tree.map(lambda x: x / accumulate, total)


def moved(tree: Any, moves: Any) -> Any:
    """The tree with `moves`, which hold some of its branches, added to its leaves."""
    if not isinstance(moves, dict):
        return tree + moves
    return tree | {name: moved(tree[name], change) for name, change in moves.items()}


def make_step(task: Task, cfg: StageConfig) -> Callable:
    """The training step: (state, frozen, batch) -> (state, metrics); pure, to be jitted."""
    optimizer = make_optimizer(cfg, f"train.{task.name}")
    schedule = make_schedule(cfg, f"train.{task.name}")

    def step(state: TrainState, frozen: Any, batch: dict) -> tuple[TrainState, dict]:
        key, batch = stream(state.rng, state.step), batch | {"step": state.step}
        loss, metrics, grads = loss_and_grad(task, state.params, frozen, batch, key, cfg.accumulate)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = moved(optax.apply_updates(state.params, updates), metrics.pop("moves", {}))
        ema = ema_update(state.ema, params, cfg.ema, state.step) if cfg.ema else state.ema
        metrics = metrics | {
            "loss": loss,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, params, opt, ema, state.rng), metrics

    return step


def jitted_step(task: Task, cfg: StageConfig, abstract: TrainState) -> Callable:
    """The step, compiled on first use; the state stays where `abstract` places it."""
    places = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(make_step(task, cfg), donate_argnums=0, out_shardings=(places, None))


def averaged(state: TrainState) -> Any:
    """The parameters to evaluate: the moving average where there is one."""
    return state.ema or state.params


class _StopFlag:
    """Set by SIGTERM while training; handlers exist in the main thread only.

    Several processes have JAX's own handler, through which they agree on a step.
    """

    def __enter__(self):
        self.event = threading.Event()
        self.main = threading.current_thread() is threading.main_thread()
        self.main = self.main and jax.process_count() == 1
        if self.main:
            self.previous = signal.signal(signal.SIGTERM, lambda *_: self.event.set())
        return self.event

    def __exit__(self, *_):
        if self.main:
            signal.signal(signal.SIGTERM, self.previous)


def _mean_metrics(window: list[dict], task: Task, step: int) -> dict[str, float]:
    """Averages a window of device metrics; refuses non-finite loss or gradient."""
    host = jax.device_get(window)
    for offset, metrics in enumerate(host):
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(metrics[name]):
                at = step - len(host) + offset + 1
                raise NonFiniteError(
                    f"stage {task.name}, step {at}: {name} is {float(metrics[name])}; stopped. The "
                    f"last good checkpoint is kept; lower config.train.{task.name}.learning_rate "
                    "or clip harder"
                )
    return {k: float(np.mean([m[k] for m in host])) for k in host[0]}


def fit(
    task: Task,
    cfg: StageConfig,
    seed: int,
    mesh: Any,
    frozen: Any,
    loader: Callable[[int], Iterator[dict]],
    directory: str,
    writer: Writer,
    meta: dict,
    tracer: Tracer | None = None,
) -> Any:
    """Trains one stage to its end, from its newest good checkpoint if there is one.

    Args:
      task: what to train.
      cfg: how.
      seed: of initialization and steps.
      mesh: devices.
      frozen: parameters of earlier stages, passed to the loss.
      loader: start step -> iterator of host batches.
      directory: checkpoints.
      writer: metrics.
      meta: stored with each checkpoint.
      tracer: of the steps that are profiled.

    Returns:
      The parameters to use: the moving average, or the parameters without one.

    Raises:
      NonFiniteError: the loss or gradient is not finite; earlier checkpoints stay.
      Preempted: SIGTERM; the state was saved.
    """
    abstract = abstract_state(task, cfg, mesh)
    with Checkpoints(directory, keep=cfg.keep) as checkpoints, _StopFlag() as stop:
        restored = checkpoints.restore_latest(to_items(abstract))
        if restored is None:
            state = init_state(task, cfg, seed, abstract)
        else:
            state = from_items(restored[0])
        start = int(state.step)
        writer.resume(task.name, start)
        if start < cfg.steps:
            step_fn = jitted_step(task, cfg, abstract)
            run = functools.partial(_loop, task, cfg, mesh, frozen, writer, meta, checkpoints, stop)
            tracer = tracer or Tracer((-1, -1), "")
            state, stopped = run(tracer, step_fn, state, start, loader(start))
        else:
            stopped = stop.is_set()
        if stopped:
            stopped = f"SIGTERM: stage {task.name} saved at step {int(state.step)}"
            log.warning("%s; run the same command again to go on", stopped)
            raise Preempted(stopped)
    return averaged(state)


def _loop(
    task, cfg, mesh, frozen, writer, meta, checkpoints, stop, tracer, step_fn, state, start, batches
):
    window, frozen = [], on_devices(frozen, mesh)
    shown = jax.process_index() == 0
    progress = Progress(cfg.steps, start, task.name, cfg.batch_size, task.tokens, shown)
    tracer.reach(start, state)
    try:
        for step in range(start + 1, cfg.steps + 1):
            with progress.waiting():
                batch = host_to_device(next(batches), mesh)
            if step == start + 1 and ideal_seconds(1.0, mesh):
                flops = task.flops(state.params, frozen, batch)
                progress.ideal = ideal_seconds(flops, mesh)
            with jax.profiler.StepTraceAnnotation(task.name, step_num=step):
                state, metrics = step_fn(state, frozen, batch)
            tracer.reach(step, metrics)
            window.append(metrics)
            last, stopping = step == cfg.steps, distributed.stopping(step, stop.is_set())
            if step % cfg.log_every == 0 or last or stopping:
                means = _mean_metrics(window, task, step)
                window.clear()
                progress.update(step, means)
                writer.scalars(task.name, step, means | progress.rates)
                checkpoints.poll()
            if step % cfg.save_every == 0 or last or stopping:
                data_state = {"next_index": step}
                checkpoints.save(step, to_items(state), data_state, meta, wait=last or stopping)
            if stopping:
                break
    finally:
        tracer.close()
        progress.close()
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    return state, stopping


def on_devices(tree: Any, mesh) -> Any:
    """Puts host arrays of a tree on every device once, instead of at every step."""
    place = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.device_put(x, place) if isinstance(x, np.ndarray) else x, tree
    )


def to_items(state: TrainState) -> dict:
    """The separate checkpoint items of a state."""
    return {
        "params": state.params,
        "ema": state.ema,
        "opt": {"state": state.opt, "step": state.step},
        "rng": {"key": state.rng},
    }


def from_items(items: dict) -> TrainState:
    """Inverse of to_items."""
    return TrainState(
        step=items["opt"]["step"],
        params=items["params"],
        opt=items["opt"]["state"],
        ema=items["ema"],
        rng=items["rng"]["key"],
    )

"""Plans and attention masks as pictures."""

import os

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Bool, Int
from matplotlib.figure import Figure

from nexttok.evals.lattice import EMPTY, lattice
from nexttok.generator import Generator
from nexttok.nn.slots import QUERY, visible
from nexttok.plans import Plan
from nexttok.tokens import Tokens, TokenSpec

COLORS = matplotlib.colormaps["viridis_r"]  # light for the first step, dark for the last
NUMBERED, SIDE = 100, 2.6  # cells of a map that still get numbers; inches of a map


def example_steps(plan: Plan) -> Int[np.ndarray, "N"]:
    """The step of every token; of a free order, that of one random example."""
    if plan.kind == "fixed":
        return plan.step_of_token
    steps = np.empty_like(plan.step_of_slot)
    steps[np.random.default_rng(0).permutation(plan.length)] = plan.step_of_slot
    return steps


def maps(spec: TokenSpec, steps: Int[np.ndarray, "N"]) -> list[Int[np.ndarray, "r c"]]:
    """The steps of the tokens as cells; of a pyramid, one map per scale."""
    parts = [steps[:n] for n in spec.prefixes] if spec.scales else [steps]
    return [lattice(spec, part) for part in parts]


def attention(gen: Generator) -> tuple[Bool[np.ndarray, "S S"], Int[np.ndarray, "S"]]:
    """What every slot of a training example sees, and the slots' steps (-1 for class slots).

    Rows are queries, columns keys. Slots that hold no token answer nobody where a backbone keeps
    them apart (cross_decoder).
    """
    n, spec = gen.spec.length, gen.spec
    tokens = Tokens(
        ids=jnp.zeros((1, n), jnp.int32) if spec.vocab else None,
        values=jnp.zeros((1, n, spec.channels)) if spec.channels else None,
    )
    slots = gen.lesson(tokens, jax.random.key(0)).slots
    steps, kind = (jnp.atleast_2d(x)[0] for x in (slots.steps, slots.kind))
    seen = visible(steps, steps)
    if getattr(gen.context, "layout", "") == "separate":
        seen &= (kind != QUERY)[None]
    return np.asarray(seen), np.asarray(steps)


def draw_plan(axes, spec: TokenSpec, steps: Int[np.ndarray, "r c"], last: int) -> None:
    """One map of steps, coloured and, where cells are few, numbered."""
    shown = np.where(steps == EMPTY, np.nan, steps.astype(float))
    axes.imshow(shown, cmap=COLORS, vmin=0, vmax=max(last, 1), interpolation="nearest")
    if steps.size <= NUMBERED:
        for (r, c), step in np.ndenumerate(steps):
            if step != EMPTY:
                ink = "white" if step > 0.5 * last else "black"
                axes.text(c, r, str(step + 1), ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_attention(axes, seen: Bool[np.ndarray, "Q K"], steps: Int[np.ndarray, "K"]) -> None:
    """A mask: keys that are seen in the colour of their step, others white."""
    shown = np.where(seen, np.maximum(steps, 0)[None].astype(float), np.nan)
    axes.imshow(shown, cmap=COLORS, vmin=0, vmax=max(int(steps.max()), 1), interpolation="nearest")
    axes.set_xlabel("slot that is seen", fontsize=8)
    axes.set_ylabel("slot that sees", fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def plan_figure(spec: TokenSpec, plan: Plan, masks: dict | None = None) -> Figure:
    """The maps of a plan in a row, and behind them attention masks.

    Args:
      spec, plan: whose order is shown.
      masks: title -> what `attention` returns.
    """
    steps, masks = example_steps(plan), masks or {}
    drawn = maps(spec, steps)
    figure = Figure(figsize=(SIDE * (len(drawn) + len(masks)), SIDE + 0.3), layout="constrained")
    axes = figure.subplots(1, len(drawn) + len(masks), squeeze=False)[0]
    for axis, cells in zip(axes, drawn, strict=False):
        draw_plan(axis, spec, cells, len(plan.sizes) - 1)
    free = "" if plan.kind == "fixed" else f", {plan.kind} (an example)"
    axes[0].set_title(f"{len(plan.sizes)} steps{free}", fontsize=9, loc="left")
    for axis, (title, mask) in zip(axes[len(drawn) :], masks.items(), strict=True):
        draw_attention(axis, *mask)
        axis.set_title(title, fontsize=9, loc="left")
    return figure


def save_plan(path: str, gen: Generator) -> str:
    """Draws a generator's plan and its attention in training, a PNG written whole or not at all."""
    figure = plan_figure(gen.spec, gen.plan, {"attention in training": attention(gen)})
    figure.savefig(f"{path}.partial", format="png", dpi=120)
    os.replace(f"{path}.partial", path)
    return path

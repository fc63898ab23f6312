"""Floating-point operations that a function asks for, counted in its trace.

Matrix products and convolutions, whose shapes the trace gives; no compiler, no device. What a
rematerialized model computes twice stands twice in its trace: the model's own count is that of its
step without rematerialization.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def count(fn: Callable, *args: Any) -> float:
    """FLOPs of fn(*args); args may be shapes. A loop of unknown length counts once."""
    return _jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _jaxpr(jaxpr, scope: str = "") -> float:
    return sum(_equation(e, f"{scope}/{e.source_info.name_stack}") for e in jaxpr.eqns)


def _equation(equation, scope) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _conv(equation)
    if name == "pallas_call":
        shapes = [x.aval.shape for x in equation.outvars]
        return attention(f"{scope}/{params['name']}", shapes, "pairs")
    inner = [_jaxpr(j, scope) for j in _inner(params)]
    if name == "cond":
        return max(inner)
    if name == "shard_map":  # the body is what one device does
        named = {a for spec in params["out_specs"] for entry in spec
                 for a in ((entry,) if isinstance(entry, str) else entry or ())}  # fmt: skip
        return sum(inner) * math.prod(params["mesh"].shape[a] for a in named)
    return sum(inner) * (params["length"] if name == "scan" else 1)


# Matrix products of query-key pairs in the kernels of flash attention.
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


def attention_scope(pairs: int, area: int) -> str:
    """A name for jax.named_scope around an attention kernel, which nobody could count otherwise.

    Args:
      pairs: query-key pairs of one head that are visible.
      area: pairs that the kernel computes, as it skips whole blocks only.
    """
    return f"attention[pairs={pairs},area={area}]"


def attention(name: str, shapes: list[tuple[int, ...]], which: str) -> float:
    """FLOPs of an attention kernel, by the scope in its name.

    Args:
      name: with the scope, and the kernel's own name, which ends in fwd, dq or dkv.
      shapes: of its outputs.
      which: pairs | area.
    """
    stated = re.search(rf"attention\[.*?{which}=(\d+)", name)
    phase = re.search(r"splash_\w*?_(fwd|dq|dkv)", name)
    if not (stated and phase):
        return 0.0
    *heads, _, wide = shapes[3] if phase[1] == "fwd" else shapes[-1]  # before these is scratch
    return 2.0 * PRODUCTS[phase[1]] * int(stated[1]) * math.prod(heads) * wide


def _inner(params: dict) -> Iterator[Any]:
    """Jaxprs among the parameters of an equation."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            found = getattr(item, "jaxpr", item)  # closed or not
            if hasattr(found, "eqns"):
                yield found


def _dot(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)


def _conv(equation) -> float:
    params = equation.params
    image, kernel = (x.aval.shape for x in equation.invars)
    out, numbers = equation.outvars[0].aval.shape, params["dimension_numbers"]
    total = 2.0 * kernel[numbers.rhs_spec[1]] * math.prod(out[i] for i in numbers.out_spec[:2])
    for k, axes in enumerate(
        zip(numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec, strict=True)
    ):
        if k >= 2:  # the first two are batch and channels
            side, taps, places = image[axes[0]], kernel[axes[1]], out[axes[2]]
            options = (params[name][k - 2] for name in
                       ("window_strides", "padding", "lhs_dilation", "rhs_dilation"))  # fmt: skip
            stride, (low, _), spread, step = options
            total *= meetings(side, taps, places, stride, low, spread, step)
    return total / params["batch_group_count"]


def meetings(
    side: int, taps: int, places: int, stride: int, low: int, spread: int, step: int
) -> int:
    """Pairs of an output place and a tap that meet a pixel, along one axis of a convolution.

    Padding and the holes of dilation cost nothing.

    Args:
      side: pixels; taps: of the kernel; places: outputs.
      stride: between places; low: padding before the first pixel.
      spread: between pixels (dilation of the image); step: between taps (dilation of the kernel).
    """
    at = np.arange(places)[:, None] * stride + np.arange(taps) * step - low
    return int(((at >= 0) & (at <= (side - 1) * spread) & (at % spread == 0)).sum())

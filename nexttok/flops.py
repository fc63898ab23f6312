"""Floating-point operations that a function asks for, counted in its trace.

Matrix products and convolutions, whose shapes the trace gives; no compiler, no device. What a
rematerialized model computes twice stands twice in its trace: the model's own count is that of its
step without rematerialization.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def count(fn: Callable, *args: Any) -> float:
    """FLOPs of fn(*args); args may be shapes. A loop of unknown length counts once."""
    return _jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _jaxpr(jaxpr) -> float:
    return sum(_equation(e) for e in jaxpr.eqns)


def _equation(equation) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _conv(equation)
    inner = [_jaxpr(j) for j in _inner(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


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

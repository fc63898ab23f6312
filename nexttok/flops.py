"""Floating-point operations that a function asks for, counted in its trace.

Matrix products and convolutions, whose shapes the trace gives; no compiler, no device. What a
rematerialized model computes twice stands twice in its trace: the model's own count is that of its
step without rematerialization.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


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
    """Of a dilated image only every so many taps meet a pixel."""
    kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    _, channels, *spatial = equation.params["dimension_numbers"].rhs_spec
    taps = kernel[channels] * math.prod(kernel[i] for i in spatial)
    holes = math.prod(equation.params["lhs_dilation"])
    return 2.0 * math.prod(out) * taps / holes / equation.params["batch_group_count"]

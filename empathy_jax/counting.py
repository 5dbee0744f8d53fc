"""Products that a traced program asks for, whatever it is compiled to.

Counted from the jaxpr: two FLOPs for each multiplication with its addition, loops as often as they run,
what a backward pass computes again included; of branches the dearest. A loop that does not tell its
count goes once through an array, a slice at a time, if its body takes one. It is the work of the whole
program, all devices together.
"""

import math
from collections.abc import Callable
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params


def flops(program: Callable[..., Any], *arguments: Any, loops: int = 1) -> float:
    """FLOPs of the matrix products in `program(*arguments)`.

    Args:
      program: a jitted function.
      arguments: values or shapes, static ones as they are.
      loops: taken as the count of a `while_loop` whose body takes no slices.
    """
    return _flops(program.trace(*arguments).jaxpr.jaxpr, loops)


def _flops(jaxpr: Jaxpr, loops: int) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _product(equation)
        elif name == "scan":
            total += parameters["length"] * _flops(parameters["jaxpr"].jaxpr, loops)
        elif name == "while":
            body = parameters["body_jaxpr"].jaxpr
            total += (_slices(body) or loops) * _flops(body, loops)
        elif name == "cond":
            total += max(_flops(branch.jaxpr, loops) for branch in parameters["branches"])
        elif name == "shard_map":
            parts = parameters["mesh"].size
            total += parts * _flops(parameters["jaxpr"], loops)
        else:
            total += sum(_flops(inner, loops) for inner in jaxprs_in_params(parameters))
    return total


def _slices(body: Jaxpr) -> int:
    """How many slices an array has of which a loop's body takes one; 0 where it takes none."""
    most = 0
    for equation in body.eqns:
        name = equation.primitive.name
        if name == "dynamic_slice":
            whole, part = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            most = max(most, math.prod(-(-w // p) for w, p in zip(whole, part, strict=True)))
        elif name not in ("scan", "while"):
            most = max([most, *(_slices(inner) for inner in jaxprs_in_params(equation.params))])
    return most


def _product(equation: JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    sizes = equation.invars[0].aval.shape
    inner = math.prod(sizes[axis] for axis in contracted)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * inner

"""Products that a traced program asks for, whatever it is compiled to.

Counted from the jaxpr: two FLOPs for each multiplication with its addition, loops as often as they run,
what a backward pass computes again included; of branches the dearest. It is the work of the whole
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
      loops: taken as the count of a `while_loop`, which does not tell its own.
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
            total += loops * _flops(parameters["body_jaxpr"].jaxpr, loops)
        elif name == "cond":
            total += max(_flops(branch.jaxpr, loops) for branch in parameters["branches"])
        elif name == "shard_map":
            parts = parameters["mesh"].size
            total += parts * _flops(parameters["jaxpr"], loops)
        else:
            total += sum(_flops(inner, loops) for inner in jaxprs_in_params(parameters))
    return total


def _product(equation: JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    sizes = equation.invars[0].aval.shape
    inner = math.prod(sizes[axis] for axis in contracted)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * inner

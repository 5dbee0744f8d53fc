"""Array types that public signatures are written with: `Float[Array, "B T D"]` and the like."""

from collections.abc import Mapping
from typing import Any

from jax import Array
from jaxtyping import Bool, Float, Float32, Int, Key, PyTree, Shaped

Params = Mapping[str, Any]

__all__ = ["Array", "Bool", "Float", "Float32", "Int", "Key", "Params", "PyTree", "Shaped"]

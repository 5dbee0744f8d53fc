"""What the tests of the maths share."""

from collections.abc import Callable

import jax
import pytest


@pytest.fixture(params=["jit", "no_jit"])
def variant(request) -> Callable:
    """Each test that asks for it runs compiled and as it is written."""
    return jax.jit if request.param == "jit" else (lambda function: function)

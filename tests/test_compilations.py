import jax
import jax.numpy as jnp

from empathy_jax.compilations import CompilationCounter


def test_a_new_shape_is_counted_and_a_known_one_is_not():
    @jax.jit
    def double(x):
        return 2 * x

    three, five = jnp.ones(3), jnp.ones(5)
    counter = CompilationCounter()
    double(three)
    assert counter.take() == 1
    double(three)
    assert counter.take() == 0
    double(five)
    assert counter.take() == 1 and counter.take() == 0
    counter.close()
    double(jnp.ones(7))
    assert counter.take() == 0

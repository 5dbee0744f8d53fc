"""How often XLA compiles: a loop in its stride should not."""

import jax

# Ends once for every program that is made ready to run, taken from the cache on disk or not.
_EVENT = "/jax/core/compile/backend_compile_duration"


class CompilationCounter:
    """Counts the programs that this process compiles, from any thread.

    Holds a listener of JAX, which `close` takes away.
    """

    def __init__(self) -> None:
        self._count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: object) -> None:
        self._count += event == _EVENT

    def take(self) -> int:
        """Programs compiled since the call before."""
        count, self._count = self._count, 0
        return count

    def close(self) -> None:
        """Stop counting."""
        jax.monitoring.unregister_event_duration_listener(self._listen)

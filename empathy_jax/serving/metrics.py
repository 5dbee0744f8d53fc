"""What the server counts, as Prometheus reads it. No label ever holds what a client sent."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_WAITS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)  # seconds
_SLICES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        own = {"registry": self.registry, "namespace": "empathy"}
        waits = {**own, "buckets": _WAITS}
        self.requests = Counter(
            "requests", "Requests that were answered.", ("route", "status"), **own
        )
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts that were read.", **own)
        self.completion_tokens = Counter("completion_tokens", "Tokens that were made.", **own)
        self.failures = Counter("failures", "Errors of this program's own.", ("kind",), **own)
        self.compilations = Counter(
            "compilations",
            "Programs compiled since the server was ready: there should be none.",
            **own,
        )
        self.guard_decisions = Counter(
            "guard_decisions", "Conversations by what the guard made of them.", ("code",), **own
        )
        self.guard_held_back = Counter(
            "guard_held_back", "Sentences of replies that the guard withheld.", ("code",), **own
        )
        self._running = Gauge("running_samples", "Completions being decoded.", **own)
        self._waiting = Gauge("waiting_samples", "Completions and calls in line.", **own)
        self.request_seconds = Histogram(
            "request_seconds", "From a request to the end of its answer.", ("route",), **waits
        )
        self.queue_seconds = Histogram("queue_seconds", "From a request to its row.", **waits)
        self.first_token_seconds = Histogram(
            "first_token_seconds", "From a request to its first tokens.", **waits
        )
        self.slice_seconds = Histogram(
            "slice_seconds", "Between two parts of an answer.", buckets=_SLICES, **own
        )

    def watch(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Names the sources of the two gauges."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)

    def failed(self, error: BaseException) -> None:
        """Counts an error of this program by its type."""
        self.failures.labels(type(error).__name__).inc()

    def total(self, counter: str) -> int:
        """A counter's value, over all its labels."""
        samples = (sample for family in self.registry.collect() for sample in family.samples)
        return int(sum(s.value for s in samples if s.name == f"empathy_{counter}_total"))

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

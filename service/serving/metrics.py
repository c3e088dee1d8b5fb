"""What ``/metrics`` counts: verdicts, where their time went, and what was not done and why."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from service.resources import Prediction, Verdict

# From a small network on a GPU to a large frame on two cores.
_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)


class ServingMetrics:
    """Counts answers of ``/predict``; safe for several threads.

    Each application has its own registry, so that two of them in one process don't add up.

    Args:
        places_taken: Tells how many frames wait or are on the device.
    """

    def __init__(self, places_taken: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._predictions = Counter(
            "hairline_predictions",
            "Answers by verdict and deployment; no deployment where a model was named.",
            ["verdict", "deployment"],
            registry=self._registry,
        )
        self._parts = Counter(
            "hairline_parts",
            "Answers on parts of several frames, each of which is counted as a prediction too.",
            ["verdict", "deployment"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "hairline_prediction_seconds",
            "Where the time of an answer went; the total starts with the request's head.",
            ["step"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._unrecorded = Counter(
            "hairline_ledger_failures",
            "Answers that the ledger does not hold.",
            registry=self._registry,
        )
        self._refused = Counter(
            "hairline_predictions_refused",
            "Requests turned away because too many frames were waiting, by the problem's code.",
            ["code"],
            registry=self._registry,
        )
        self._gone = Counter(
            "hairline_predictions_cancelled",
            "Requests whose client left before its answer.",
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(_Places(places_taken))

    def count(self, prediction: Prediction) -> None:
        """Count one frame's answer."""
        deployment = prediction.model.deployment or ""
        self._predictions.labels(prediction.verdict, deployment).inc()
        for step, milliseconds in prediction.timings_ms.items():
            self._seconds.labels(step).observe(milliseconds / 1000)
        if prediction.ledger_sequence is None:
            self._unrecorded.inc()

    def count_part(self, verdict: Verdict, deployment: str | None) -> None:
        """Count the answer on a part of several frames."""
        self._parts.labels(verdict, deployment or "").inc()

    def count_refused(self, code: str) -> None:
        """Count a request that found no place."""
        self._refused.labels(code).inc()

    def count_gone(self) -> None:
        """Count a request whose client left."""
        self._gone.inc()

    def exposition(self) -> bytes:
        """Return everything in Prometheus's text format 0.0.4."""
        return generate_latest(self._registry)


class _Places(Collector):
    def __init__(self, places_taken: Callable[[], int]) -> None:
        self._places_taken = places_taken

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the queue's length as it is now."""
        yield GaugeMetricFamily(
            "hairline_frames_waiting",
            "Frames that wait for the device, are decoded for it or are on it.",
            value=self._places_taken(),
        )

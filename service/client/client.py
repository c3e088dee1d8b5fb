"""The Python client: one method for each call of the REST API.

with HairlineClient("http://127.0.0.1:8000") as hairline:
    dataset = hairline.create_dataset("bearing-rings", classes=["scratch"])
    hairline.upload(dataset.id, [("images/a.png", image), ("masks/a_mask.png", mask)])
    job = hairline.create_job(hairline.freeze(dataset.id).id)
    job = hairline.wait_for_job(job.id)
    hairline.deploy("line-1", job.model)
    print(hairline.predict(frame, deployment="line-1").verdict)
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from service.client.comparisons import ComparisonCalls
from service.client.datasets import DatasetCalls
from service.client.deployments import DeploymentCalls
from service.client.engines import EngineCalls
from service.client.transport import (
    DEFAULT_TIMEOUT_S,
    HairlineError,
    JsonObject,
    Transport,
    idempotency,
    path_of,
)
from service.resources import (
    JobResource,
    MetricsRecord,
    ModelResource,
    PartPrediction,
    Prediction,
)

__all__ = ["HairlineClient", "HairlineError"]

# The service answers by the deadline; what is later than this was lost on the way.
_ANSWER_GRACE_S = 1.0


class HairlineClient(DatasetCalls, ComparisonCalls, DeploymentCalls, EngineCalls):
    """Calls one Hairline service.

    Every method raises `HairlineError` when the service refuses or can't be reached.

    Args:
        base_url: Where the service listens.
        timeout_s: For each request.
    """

    def __init__(self, base_url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(Transport(base_url, timeout_s))

    def __enter__(self) -> Self:
        """Return the client, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def check_ready(self) -> None:
        """Raise unless the service can do its work; the error tells what it lacks."""
        self._transport.send("GET", "/readyz")

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the service is ready; after ``timeout_s`` its last reason is raised."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self.check_ready()
            except HairlineError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.2)

    def create_job(
        self, version_id: str, *, idempotency_key: str | None = None, **wishes: Any
    ) -> JobResource:
        """Queue a training job; ``wishes`` are the other fields of ``POST /jobs``."""
        body, headers = {"version": version_id, **wishes}, idempotency(idempotency_key)
        answer = self._transport.call("POST", "/jobs", json=body, headers=headers)
        return JobResource.model_validate(answer)

    def job(self, job_id: str) -> JobResource:
        """Return a job."""
        return JobResource.model_validate(self._transport.call("GET", _job(job_id)))

    def jobs(self, status: str | None = None) -> Iterator[JobResource]:
        """Yield jobs, newest first."""
        query = {} if status is None else {"status": status}
        return map(JobResource.model_validate, self._transport.pages("/jobs", query))

    def cancel_job(self, job_id: str) -> JobResource:
        """Ask a job to stop."""
        return JobResource.model_validate(self._transport.call("POST", _job(job_id) + ":cancel"))

    def resume_job(self, job_id: str) -> JobResource:
        """Let a failed, cancelled or interrupted job go on."""
        return JobResource.model_validate(self._transport.call("POST", _job(job_id) + ":resume"))

    def job_metrics(self, job_id: str, after: int = 0) -> list[MetricsRecord]:
        """Return a job's metrics events with a ``seq`` above ``after``, oldest first."""
        answer = self._transport.call("GET", _job(job_id) + "/metrics", params={"after": after})
        return [MetricsRecord.model_validate(record) for record in answer["items"]]

    def job_logs(self, job_id: str) -> str:
        """Return the end of what a job's training program printed."""
        return self._transport.send("GET", _job(job_id) + "/logs").text

    def job_events(self, job_id: str, last_event_id: int = 0) -> Iterator[JsonObject]:
        """Yield a job's events as they happen, until it has ended.

        A ``status`` event comes last and has no ``seq``.
        """
        return self._transport.events(_job(job_id) + "/events", last_event_id)

    def job_report(self, job_id: str) -> JsonObject:
        """Return the report of a job that has succeeded."""
        return self._transport.call("GET", _job(job_id) + "/report")

    def job_report_page(self, job_id: str) -> str:
        """Return the same as one HTML file with plots and pictures."""
        query = {"format": "html"}
        return self._transport.send("GET", _job(job_id) + "/report", params=query).text

    def wait_for_job(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        poll_s: float = 0.5,
        on_change: Callable[[JobResource], object] | None = None,
    ) -> JobResource:
        """Wait until a job has succeeded, failed or been cancelled, and return it.

        Args:
            job_id: The job.
            timeout_s: None waits for ever.
            poll_s: Pause between two looks.
            on_change: Is told the job whenever it looks different.

        Raises:
            TimeoutError: The job has not ended after ``timeout_s``.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last = None
        while True:
            job = self.job(job_id)
            if on_change is not None and job != last:
                on_change(job)
            if job.has_ended:
                return job
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {job_id} is {job.status} after {timeout_s:g} s")
            last = job
            time.sleep(poll_s)

    def models(self) -> Iterator[ModelResource]:
        """Yield models, newest first."""
        return map(ModelResource.model_validate, self._transport.pages("/models"))

    def model(self, model_id: str) -> ModelResource:
        """Return a model."""
        return ModelResource.model_validate(self._transport.call("GET", _model(model_id)))

    def model_report(self, model_id: str) -> JsonObject:
        """Return a model's training report."""
        return self._transport.call("GET", _model(model_id) + "/report")

    def download_bundle(self, model_id: str, target: Path) -> None:
        """Write a model's bundle to ``target`` as a tar archive, whole or not at all."""
        self._transport.download(_model(model_id) + "/bundle", target)

    def predict(
        self,
        frame: Path,
        *,
        deployment: str | None = None,
        model: str | None = None,
        include: Sequence[str] = (),
        deadline_ms: float | None = None,
        part_id: str | None = None,
        patience_s: float = 0.0,
    ) -> Prediction:
        """Inspect one frame; without a name or a model the deployment ``default`` is asked.

        Args:
            frame: A picture's file.
            deployment: A name that is served.
            model: A model by its id instead.
            include: Pictures, or ``rle``, wanted beside the verdict.
            deadline_ms: After it the verdict is ``NOT_INSPECTED``; the call itself gives up a
                little later.
            part_id: The part that is shown.
            patience_s: How long to come again while the service's queue is full.
        """
        asked = _asked(deployment, model, include, deadline_ms) | _known(part_id=part_id)
        answer = self._inspect("/predict", [frame], asked, deadline_ms, patience_s)
        return Prediction.model_validate(answer)

    def predict_part(
        self,
        part_id: str,
        frames: Sequence[Path],
        *,
        deployment: str | None = None,
        model: str | None = None,
        include: Sequence[str] = (),
        deadline_ms: float | None = None,
        patience_s: float = 0.0,
    ) -> PartPrediction:
        """Inspect all frames of one part, which get one verdict; else as `predict`."""
        asked = _asked(deployment, model, include, deadline_ms) | {"part_id": part_id}
        answer = self._inspect("/predict/part", frames, asked, deadline_ms, patience_s)
        return PartPrediction.model_validate(answer)

    def _inspect(
        self,
        path: str,
        frames: Sequence[Path],
        asked: JsonObject,
        deadline_ms: float | None,
        patience_s: float,
    ) -> JsonObject:
        limits = {} if deadline_ms is None else {"timeout": deadline_ms / 1000 + _ANSWER_GRACE_S}
        give_up_s = time.monotonic() + patience_s
        while True:
            with ExitStack() as files:
                parts = [
                    (
                        "file",
                        (
                            frame.name,
                            files.enter_context(frame.open("rb")),
                            "application/octet-stream",
                        ),
                    )
                    for frame in frames
                ]
                try:
                    return self._transport.call("POST", path, params=asked, files=parts, **limits)
                except HairlineError as error:
                    # A refused frame was not inspected, so asking again inspects it once.
                    pause_s = error.retry_after_s
                    if pause_s is None or time.monotonic() + pause_s > give_up_s:
                        raise
            time.sleep(pause_s)


def _asked(
    deployment: str | None, model: str | None, include: Sequence[str], deadline_ms: float | None
) -> JsonObject:
    return _known(
        deployment=deployment,
        model=model,
        include=",".join(include) or None,
        deadline_ms=deadline_ms,
    )


def _known(**query: Any) -> JsonObject:
    return {name: value for name, value in query.items() if value is not None}


def _job(job_id: str) -> str:
    return path_of("jobs", job_id)


def _model(model_id: str) -> str:
    return path_of("models", model_id)

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from service.archive_upload import ArchiveUpload, Patience, send_archive
from service.client_transport import HairlineError, JsonObject, Progress, Transport
from service.datasets.resources import (
    DatasetResource,
    ImportResource,
    ItemResource,
    UploadResource,
    VersionDiffResource,
    VersionHealthResource,
    VersionResource,
)
from service.resources import (
    DeploymentResource,
    JobResource,
    MetricsRecord,
    ModelResource,
    Prediction,
)

__all__ = ["HairlineClient", "HairlineError"]

# One upload of many large frames over a slow line takes minutes.
_DEFAULT_TIMEOUT_S = 300.0


class HairlineClient:
    """Calls one Hairline service.

    Every method raises `HairlineError` when the service refuses or can't be reached.

    Args:
        base_url: Where the service listens.
        timeout_s: For each request.
    """

    def __init__(self, base_url: str, *, timeout_s: float = _DEFAULT_TIMEOUT_S) -> None:
        self._transport = Transport(base_url, timeout_s)

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

    def create_dataset(
        self,
        name: str,
        *,
        task: str = "segmentation",
        classes: Sequence[str] | None = None,
        bayer: str | None = None,
        idempotency_key: str | None = None,
    ) -> DatasetResource:
        """Create an empty data set; ``bayer`` (``RGGB``, …) declares its frames raw mosaics."""
        body: JsonObject = {"name": name, "task": task}
        body |= {} if bayer is None else {"bayer": bayer}
        if classes is not None:
            body["classes"] = list(classes)
        headers = _idempotency(idempotency_key)
        answer = self._transport.call("POST", "/datasets", json=body, headers=headers)
        return DatasetResource.model_validate(answer)

    def dataset(self, dataset_id: str) -> DatasetResource:
        """Return a data set with its counts and what keeps it from being frozen."""
        return DatasetResource.model_validate(self._transport.call("GET", _dataset(dataset_id)))

    def datasets(self) -> Iterator[DatasetResource]:
        """Yield all data sets by name."""
        return map(DatasetResource.model_validate, self._transport.pages("/datasets"))

    def upload(self, dataset_id: str, files: Sequence[tuple[str, Path]]) -> UploadResource:
        """Upload frames and labels under the given names.

        When some are refused the error's ``problem["files"]`` tells what became of each.
        """
        with ExitStack() as stack:
            parts = [
                ("files", (name, stack.enter_context(path.open("rb")), "application/octet-stream"))
                for name, path in files
            ]
            answer = self._transport.call("POST", _dataset(dataset_id, "images"), files=parts)
        return UploadResource.model_validate(answer)

    def upload_archive(
        self,
        dataset_id: str,
        archive: Path,
        *,
        progress: Callable[[int, int], None] | None = None,
        patience_s: float = _DEFAULT_TIMEOUT_S,
    ) -> ArchiveUpload:
        """Send a zip or tar archive in pieces; `wait_for_import` tells what becomes of it.

        A cut connection and a service that restarts are waited for.  Call it again after an error
        or a kill: it goes on.  ``progress`` is told the bytes that are there and those of all;
        after ``patience_s`` without progress the last error is raised.
        """
        return send_archive(
            self._transport,
            _dataset(dataset_id),
            dataset_id,
            archive,
            progress=progress,
            patience_s=patience_s,
        )

    def archive_import(self, dataset_id: str, import_id: str) -> ImportResource:
        """Return how far an archive is."""
        path = _dataset(dataset_id, "imports", import_id)
        return ImportResource.model_validate(self._transport.call("GET", path))

    def wait_for_import(
        self,
        dataset_id: str,
        import_id: str,
        *,
        on_change: Callable[[ImportResource], None] | None = None,
        poll_s: float = 0.5,
        patience_s: float = _DEFAULT_TIMEOUT_S,
    ) -> ImportResource:
        """Return an import when it has ended; a service that restarts is waited for."""
        last, patience = None, Patience(patience_s)
        while True:
            try:
                found = self.archive_import(dataset_id, import_id)
            except HairlineError as error:
                patience.wait(error)
                continue
            patience.renew()
            if on_change is not None and found != last:
                on_change(found)
            if found.has_ended:
                return found
            last = found
            time.sleep(poll_s)

    def items(self, dataset_id: str) -> Iterator[ItemResource]:
        """Yield a data set's frames."""
        pages = self._transport.pages(_dataset(dataset_id, "items"))
        return map(ItemResource.model_validate, pages)

    def preview(self, dataset_id: str, item_id: str, kind: str, **query: Any) -> bytes:
        """Return a picture of a frame: ``image``, ``mask`` or ``overlay``."""
        path = _dataset(dataset_id, "items", item_id, kind)
        return self._transport.send("GET", path, params=query).content

    def delete_item(self, dataset_id: str, item_id: str) -> None:
        """Delete a frame and its label from a data set; frozen versions keep them."""
        self._transport.send("DELETE", _dataset(dataset_id, "items", item_id))

    def delete_label(self, dataset_id: str, item_id: str) -> None:
        """Delete a frame's label."""
        self._transport.send("DELETE", _dataset(dataset_id, "items", item_id, "label"))

    def freeze(
        self,
        dataset_id: str,
        *,
        split: Mapping[str, Any] | None = None,
        unlabelled: str = "reject",
        idempotency_key: str | None = None,
    ) -> VersionResource:
        """Freeze a data set's present content as an immutable version."""
        body: JsonObject = {"unlabelled": unlabelled}
        if split is not None:
            body["split"] = dict(split)
        path, headers = _dataset(dataset_id, "versions"), _idempotency(idempotency_key)
        answer = self._transport.call("POST", path, json=body, headers=headers)
        return VersionResource.model_validate(answer)

    def version(self, version_id: str) -> VersionResource:
        """Return a version with its statistics."""
        path = f"/versions/{quote(version_id)}"
        return VersionResource.model_validate(self._transport.call("GET", path))

    def health(self, version_id: str) -> VersionHealthResource:
        """Return what is wrong with a version, as far as its labels and splits tell."""
        answer = self._transport.call("GET", f"/versions/{quote(version_id)}/health")
        return VersionHealthResource.model_validate(answer)

    def diff(self, version_id: str, *, against: str) -> VersionDiffResource:
        """Return what changed from the version ``against`` to this one."""
        path = f"/versions/{quote(version_id)}/diff"
        answer = self._transport.call("GET", path, params={"against": against})
        return VersionDiffResource.model_validate(answer)

    def export(
        self,
        version_id: str,
        form: str,
        target: Path,
        *,
        progress: Progress | None = None,
    ) -> None:
        """Write a version to ``target`` as a tar archive, whole or not at all.

        Args:
            version_id: The version.
            form: "coco", "labelme", "masks", "voc" or "yolo".
            target: Is replaced when the archive is whole.
            progress: Is told the bytes that have arrived, and those of the archive.
        """
        path, query = f"/versions/{quote(version_id)}/export", {"format": form}
        self._transport.download(path, target, query, progress)

    def create_job(
        self, version_id: str, *, idempotency_key: str | None = None, **wishes: Any
    ) -> JobResource:
        """Queue a training job; ``wishes`` are the other fields of ``POST /jobs``."""
        body, headers = {"version": version_id, **wishes}, _idempotency(idempotency_key)
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

    def deploy(self, name: str, model_id: str) -> DeploymentResource:
        """Serve a model under a name."""
        body = {"model": model_id}
        answer = self._transport.call("PUT", _deployment(name), json=body)
        return DeploymentResource.model_validate(answer)

    def deployment(self, name: str) -> DeploymentResource:
        """Return what a name serves."""
        return DeploymentResource.model_validate(self._transport.call("GET", _deployment(name)))

    def deployments(self) -> Iterator[DeploymentResource]:
        """Yield deployments by name."""
        return map(DeploymentResource.model_validate, self._transport.pages("/deployments"))

    def roll_back(self, name: str) -> DeploymentResource:
        """Serve the model before again."""
        answer = self._transport.call("POST", _deployment(name) + ":rollback")
        return DeploymentResource.model_validate(answer)

    def predict(
        self,
        frame: Path,
        *,
        deployment: str | None = None,
        model: str | None = None,
        include: Sequence[str] = (),
        deadline_ms: float | None = None,
    ) -> Prediction:
        """Inspect one frame; without a name or a model the deployment ``default`` is asked."""
        query: JsonObject = {
            "deployment": deployment,
            "model": model,
            "include": ",".join(include) or None,
            "deadline_ms": deadline_ms,
        }
        asked = {name: value for name, value in query.items() if value is not None}
        with frame.open("rb") as file:
            parts = {"file": (frame.name, file, "application/octet-stream")}
            answer = self._transport.call("POST", "/predict", params=asked, files=parts)
        return Prediction.model_validate(answer)


def _path(*parts: str) -> str:
    # An identifier is one component whatever is in it.
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _dataset(dataset_id: str, *parts: str) -> str:
    return _path("datasets", dataset_id, *parts)


def _job(job_id: str) -> str:
    return _path("jobs", job_id)


def _model(model_id: str) -> str:
    return _path("models", model_id)


def _deployment(name: str) -> str:
    return _path("deployments", name)


def _idempotency(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}

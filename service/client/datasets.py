"""The part of the Python client that speaks of data sets, their frames and their versions."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

from service.client.archive_upload import ArchiveUpload, Patience, send_archive
from service.client.transport import (
    DEFAULT_TIMEOUT_S,
    HairlineError,
    JsonObject,
    Progress,
    Transport,
    idempotency,
    path_of,
)
from service.datasets.resources import (
    DatasetResource,
    ImportResource,
    ItemResource,
    UploadResource,
    VersionDiffResource,
    VersionHealthResource,
    VersionResource,
)


class DatasetCalls:
    """Calls that fill, look at and freeze data sets; see `HairlineClient`.

    Args:
        transport: To the service.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

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
        headers = idempotency(idempotency_key)
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
        layout: str | None = None,
        patience_s: float = DEFAULT_TIMEOUT_S,
    ) -> ArchiveUpload:
        """Send a zip or tar archive in pieces; `wait_for_import` tells what becomes of it.

        A cut connection and a service that restarts are waited for.  Call it again after an error
        or a kill: it goes on.  ``progress`` is told the bytes that are there and those of all;
        ``layout`` names how the files belong together, None lets the service recognize it; after
        ``patience_s`` without progress the last error is raised.
        """
        return send_archive(
            self._transport,
            _dataset(dataset_id),
            dataset_id,
            archive,
            progress=progress,
            layout=layout,
            patience_s=patience_s,
        )

    def archive_import(self, dataset_id: str, import_id: str) -> ImportResource:
        """Return how far an archive is."""
        path = _dataset(dataset_id, "imports", import_id)
        return ImportResource.model_validate(self._transport.call("GET", path))

    def name_layout(self, dataset_id: str, import_id: str, layout: str) -> ImportResource:
        """Queue an import again that failed for its layout; the archive is not sent again."""
        path = _dataset(dataset_id, "imports", import_id, "layout")
        return ImportResource.model_validate(
            self._transport.call("PUT", path, json={"name": layout})
        )

    def wait_for_import(
        self,
        dataset_id: str,
        import_id: str,
        *,
        on_change: Callable[[ImportResource], None] | None = None,
        poll_s: float = 0.5,
        patience_s: float = DEFAULT_TIMEOUT_S,
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
        path, headers = _dataset(dataset_id, "versions"), idempotency(idempotency_key)
        answer = self._transport.call("POST", path, json=body, headers=headers)
        return VersionResource.model_validate(answer)

    def version(self, version_id: str) -> VersionResource:
        """Return a version with its statistics."""
        path = f"/versions/{quote(version_id)}"
        return VersionResource.model_validate(self._transport.call("GET", path))

    def health(self, version_id: str, *, wait_s: float = 5.0) -> VersionHealthResource:
        """Return what is wrong with a version, as far as it is measured after ``wait_s``."""
        path, query = f"/versions/{quote(version_id)}/health", {"wait_s": wait_s}
        return VersionHealthResource.model_validate(self._transport.call("GET", path, params=query))

    def health_page(self, version_id: str) -> str:
        """Return the same as one HTML file with thumbnails."""
        query = {"format": "html"}
        return self._transport.send(
            "GET", f"/versions/{quote(version_id)}/health", params=query
        ).text

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


def _dataset(dataset_id: str, *parts: str) -> str:
    return path_of("datasets", dataset_id, *parts)

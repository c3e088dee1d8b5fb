"""The client's calls on models' engines and exports."""

import time
from pathlib import Path

from service.client.transport import HairlineError, Transport, path_of
from service.serving.engine_resources import EnginesResource


class EngineCalls:
    """Prepares, reads and downloads; part of `service.client.HairlineClient`."""

    _transport: Transport

    def prepare_engines(self, model_id: str) -> EnginesResource:
        """Have a model exported, and its engines compared and timed on the service's machine."""
        answer = self._transport.call("POST", path_of("models", model_id) + "/engines")
        return EnginesResource.model_validate(answer)

    def engines(self, model_id: str) -> EnginesResource:
        """Return what is known of a model's engines."""
        answer = self._transport.call("GET", path_of("models", model_id) + "/engines")
        return EnginesResource.model_validate(answer)

    def wait_for_engines(
        self, model_id: str, *, timeout_s: float | None = None, poll_s: float = 0.5
    ) -> EnginesResource:
        """Wait until a model's engines are prepared or could not be.

        Raises:
            TimeoutError: Neither is the case after ``timeout_s``.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (found := self.engines(model_id)).status in {"queued", "running"}:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"the engines of {model_id} are {found.status}")
            time.sleep(poll_s)
        return found

    def download_export(self, model_id: str, form: str, target: Path) -> None:
        """Write a model's ``onnx`` or ``openvino`` export to ``target`` as a tar archive."""
        self._transport.download(path_of("models", model_id) + f"/exports/{form}", target)

    def export_model(self, model_id: str, form: str, target: Path) -> None:
        """Download an export, and have it made first where that has not been done.

        Raises:
            HairlineError: It could not be made, or its verdicts are not the model's.
        """
        try:
            return self.download_export(model_id, form, target)
        except HairlineError as error:
            if error.code != "engines_not_prepared":
                raise
        self.prepare_engines(model_id)
        self.wait_for_engines(model_id)
        return self.download_export(model_id, form, target)

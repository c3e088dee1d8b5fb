"""The client's calls on deployments, other thresholds, shadow models and kept frames."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from service.client.transport import JsonObject, Transport, path_of
from service.datasets.resources import UploadResource
from service.resources import ModelResource
from service.serving.deployment_resources import (
    DeploymentEventResource,
    DeploymentResource,
    KeepingResource,
    KeptFrameResource,
    OperatingPointPreview,
    ShadowResource,
)

# A constraint that is not named stays as it is; None takes it away.
UNCHANGED: Any = object()


class DeploymentCalls:
    """Decides what lines are served; part of `service.client.HairlineClient`."""

    _transport: Transport

    def deploy(
        self,
        name: str,
        model_id: str,
        *,
        constraint: JsonObject | None = UNCHANGED,
        override: JsonObject | None = None,
        by: str | None = None,
        reason: str | None = None,
    ) -> DeploymentResource:
        """Serve a model under a name, if it proves the deployment's constraint.

        Args:
            name: The deployment; a new one is made.
            model_id: The model.
            constraint: ``{"escape": {"max_rate": 0.01}}``; None asks nothing any more, and without
                it the one in force stays.
            override: ``{"reason": …, "by": …}`` serves the model in any case.
            by: Who asks, for the history.
            reason: Why, for the history.
        """
        body = {"model": model_id, **_told(override=override, by=by, reason=reason)}
        if constraint is not UNCHANGED:
            body["constraint"] = constraint
        answer = self._transport.call("PUT", _deployment(name), json=body)
        return DeploymentResource.model_validate(answer)

    def deployment(self, name: str) -> DeploymentResource:
        """Return what a name serves, and how the model stands to the constraint."""
        return DeploymentResource.model_validate(self._transport.call("GET", _deployment(name)))

    def deployments(self) -> Iterator[DeploymentResource]:
        """Yield deployments by name."""
        return map(DeploymentResource.model_validate, self._transport.pages("/deployments"))

    def roll_back(
        self,
        name: str,
        *,
        given_up: str | None = None,
        override: JsonObject | None = None,
        by: str | None = None,
        reason: str | None = None,
    ) -> DeploymentResource:
        """Serve the model before again; a second call goes one further back.

        With ``given_up`` nothing is done, and `HairlineError` raised, if another model is served.
        """
        body = _told(given_up=given_up, override=override, by=by, reason=reason)
        answer = self._transport.call("POST", _deployment(name) + ":rollback", json=body)
        return DeploymentResource.model_validate(answer)

    def deployment_history(self, name: str) -> Iterator[DeploymentEventResource]:
        """Yield what was changed, by whom and why, newest first."""
        pages = self._transport.pages(_deployment(name) + "/history")
        return map(DeploymentEventResource.model_validate, pages)

    def preview_operating_point(
        self, model_id: str, max_escape: float, confidence: float = 0.95
    ) -> OperatingPointPreview:
        """Return what a bound on escapes would come to for a model that is there."""
        query = {"max_escape": max_escape, "confidence": confidence}
        path = path_of("models", model_id, "operating-points", "preview")
        return OperatingPointPreview.model_validate(self._transport.call("GET", path, params=query))

    def make_operating_point(
        self,
        model_id: str,
        escape: JsonObject,
        *,
        keep_unproven: bool = False,
        by: str | None = None,
        reason: str | None = None,
    ) -> ModelResource:
        """Make a model of the same weights whose thresholds prove a bound on escapes."""
        body = {"escape": escape, "keep_unproven": keep_unproven, **_told(by=by, reason=reason)}
        path = path_of("models", model_id, "operating-points")
        return ModelResource.model_validate(self._transport.call("POST", path, json=body))

    def begin_shadow(self, name: str, model_id: str, **wishes: Any) -> DeploymentResource:
        """Let a model run beside the served one; ``wishes`` are the other fields of the call."""
        body = {"model": model_id, **wishes}
        answer = self._transport.call("PUT", _deployment(name) + "/shadow", json=body)
        return DeploymentResource.model_validate(answer)

    def shadow(self, name: str) -> ShadowResource:
        """Return how far the newest shadow model of a deployment agrees."""
        return ShadowResource.model_validate(
            self._transport.call("GET", _deployment(name) + "/shadow")
        )

    def end_shadow(
        self, name: str, *, by: str | None = None, reason: str | None = None
    ) -> DeploymentResource:
        """Take the shadow model away; what it found stays."""
        return self._end(_deployment(name) + "/shadow", by, reason)

    def disagreements(self, name: str) -> Iterator[KeptFrameResource]:
        """Yield frames that the shadow model answered otherwise, newest first."""
        pages = self._transport.pages(_deployment(name) + "/shadow/disagreements")
        return map(KeptFrameResource.model_validate, pages)

    def keep_frames(self, name: str, **wishes: Any) -> DeploymentResource:
        """Keep frames for relabelling; ``wishes`` are the fields of ``PUT …/keep``."""
        answer = self._transport.call("PUT", _deployment(name) + "/keep", json=wishes)
        return DeploymentResource.model_validate(answer)

    def keeping(self, name: str) -> KeepingResource:
        """Return which frames are kept, and how many there are."""
        return KeepingResource.model_validate(
            self._transport.call("GET", _deployment(name) + "/keep")
        )

    def keep_no_frames(
        self, name: str, *, by: str | None = None, reason: str | None = None
    ) -> DeploymentResource:
        """Keep no more frames."""
        return self._end(_deployment(name) + "/keep", by, reason)

    def kept_frames(self, name: str, cause: str | None = None) -> Iterator[KeptFrameResource]:
        """Yield kept frames, newest first; without a cause the NG and uncertain ones."""
        pages = self._transport.pages(_deployment(name) + "/frames", _told(cause=cause))
        return map(KeptFrameResource.model_validate, pages)

    def download_kept_frame(self, frame: KeptFrameResource, target: Path) -> None:
        """Write a kept frame's picture to ``target``, whole or not at all."""
        self._transport.download(frame.image, target)

    def take_kept_frames(
        self,
        dataset_id: str,
        name: str,
        *,
        frames: Sequence[int] | None = None,
        cause: str | None = None,
    ) -> UploadResource:
        """Take kept frames into a data set: some by their numbers, or all of a cause."""
        numbers = None if frames is None else [*frames]
        body = {"deployment": name, **_told(frames=numbers, cause=cause)}
        path = path_of("datasets", dataset_id, "images") + ":from-kept"
        return UploadResource.model_validate(self._transport.call("POST", path, json=body))

    def _end(self, path: str, by: str | None, reason: str | None) -> DeploymentResource:
        # What is deleted has no body; HTTP's headers take no letters beyond Latin-1.
        headers = {} if by is None else {"X-Hairline-User": by.encode()}
        answer = self._transport.call("DELETE", path, params=_told(reason=reason), headers=headers)
        return DeploymentResource.model_validate(answer)


def _told(**members: Any) -> JsonObject:
    return {name: value for name, value in members.items() if value is not None}


def _deployment(name: str) -> str:
    return path_of("deployments", name)

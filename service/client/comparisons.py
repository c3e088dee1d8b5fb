"""The client's calls on comparisons of resolutions."""

import time
from collections.abc import Callable
from typing import Any

from service.client.transport import Transport, idempotency, path_of
from service.comparisons.resources import ComparisonResource


class ComparisonCalls:
    """Queues and reads comparisons; part of `service.client.HairlineClient`."""

    _transport: Transport

    def create_comparison(
        self, version_id: str, *, idempotency_key: str | None = None, **wishes: Any
    ) -> ComparisonResource:
        """Queue a comparison of resolutions.

        Args:
            version_id: The data-set version.
            idempotency_key: Sent again, the same key gives the same comparison.
            wishes: ``arms``, ``equal``, ``tile``, and ``job``: the other fields of ``POST /jobs``.
        """
        body = {**wishes, "job": {**wishes.get("job", {}), "version": version_id}}
        headers = idempotency(idempotency_key)
        answer = self._transport.call("POST", "/comparisons", json=body, headers=headers)
        return ComparisonResource.model_validate(answer)

    def comparison(self, comparison_id: str) -> ComparisonResource:
        """Return a comparison as it stands."""
        answer = self._transport.call("GET", path_of("comparisons", comparison_id))
        return ComparisonResource.model_validate(answer)

    def comparison_page(self, comparison_id: str) -> str:
        """Return a comparison as HTML."""
        path = path_of("comparisons", comparison_id)
        return self._transport.send("GET", path, params={"format": "html"}).text

    def wait_for_comparison(
        self,
        comparison_id: str,
        *,
        timeout_s: float | None = None,
        poll_s: float = 2.0,
        on_change: Callable[[ComparisonResource], object] | None = None,
    ) -> ComparisonResource:
        """Wait until every arm has succeeded, failed or been cancelled.

        Args:
            comparison_id: The comparison.
            timeout_s: None waits for ever.
            poll_s: Pause between two looks.
            on_change: Is told the comparison whenever it looks different.

        Raises:
            TimeoutError: An arm has not ended after ``timeout_s``.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last = None
        while True:
            found = self.comparison(comparison_id)
            if on_change is not None and found != last:
                on_change(found)
            if found.has_ended:
                return found
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{comparison_id} has not ended after {timeout_s:g} s")
            last = found
            time.sleep(poll_s)

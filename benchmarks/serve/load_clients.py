"""Clients that send frame after frame, and somebody who swaps models beneath them."""

import json
import random
import threading
import time
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any

from benchmarks.serve.judged_exchanges import Exchange, Switch
from benchmarks.serve.sent_frames import LineClient, SentFrame
from service.client import HairlineClient

DEPLOYMENT = "line"
_LONGEST_PAUSE_S = 2.0


class LoadClient(threading.Thread):
    """Sends frames in an order of its own, each as soon as the last one is answered.

    Args:
        number: Of the client; decides its order.
        url: The service's.
        frames: To choose from.
        deadline_ms: Of each request.
        stop: Ends it after the answer under way.
    """

    def __init__(
        self,
        number: int,
        url: str,
        frames: Sequence[SentFrame],
        deadline_ms: float,
        stop: threading.Event,
    ) -> None:
        super().__init__(name=f"client {number}")
        self._choice = random.Random(number)  # noqa: S311 - an order, no secret.
        self._url = url
        self._frames = frames
        self._deadline_ms = deadline_ms
        self._stopping = stop
        self.exchanges: list[Exchange] = []

    def run(self) -> None:
        """Send until it is told to stop; a connection that broke is opened again."""
        client: LineClient | None = None
        while not self._stopping.is_set():
            frame = self._choice.randrange(len(self._frames))
            begin = time.perf_counter()
            try:
                client = client or LineClient(self._url)
                exchange, pause_s = self._asked(client, frame)
            except (OSError, HTTPException, ValueError) as error:
                trouble = f"{type(error).__name__}: {error}"
                exchange, pause_s = _lost(frame, begin, trouble), 0.0
                client = None
            self.exchanges.append(exchange)
            self._stopping.wait(pause_s)
        if client is not None:
            client.close()

    def _asked(self, client: LineClient, frame: int) -> tuple[Exchange, float]:
        query: dict[str, Any] = {"deployment": DEPLOYMENT, "deadline_ms": self._deadline_ms}
        received = client.ask("/predict", self._frames[frame], **query)
        answer = json.loads(received.raw)
        pause_s = float(received.retry_after or 0)
        exchange = Exchange(frame, received.asked_s, received.answered_s, received.status, answer)
        return exchange, min(pause_s, _LONGEST_PAUSE_S)


def _lost(frame: int, asked_s: float, trouble: str) -> Exchange:
    return Exchange(frame, asked_s, time.perf_counter(), None, {}, trouble)


class ModelSwapper:
    """Puts one model after the other in place, and goes back once.

    Args:
        client: Of the service.
        model_ids: In the order of their turns; the first one is deployed at once.

    Attributes:
        switches: What was put in place and when.
        rolled_back: Which model a rollback brought back; None before it.
    """

    def __init__(self, client: HairlineClient, model_ids: Sequence[str]) -> None:
        self._client = client
        self._model_ids = model_ids
        self._turn = 0
        self.switches: list[Switch] = []
        self.rolled_back: str | None = None
        self._deploy()

    def swap(self) -> None:
        """Put the next model in place."""
        self._turn = (self._turn + 1) % len(self._model_ids)
        self._deploy()

    def roll_back(self) -> None:
        """Bring the model before back.

        Raises:
            RuntimeError: Another one came back.
        """
        before = self.switches[-2].model_id
        asked_s = time.perf_counter()
        served = self._client.roll_back(DEPLOYMENT).model
        self.switches.append(Switch(served, asked_s, time.perf_counter()))
        if served != before:
            raise RuntimeError(f"the rollback brought {served} back, not {before}")
        self.rolled_back = served
        self._turn = self._model_ids.index(served)

    def _deploy(self) -> None:
        asked_s = time.perf_counter()
        served = self._client.deploy(DEPLOYMENT, self._model_ids[self._turn]).model
        self.switches.append(Switch(served, asked_s, time.perf_counter()))

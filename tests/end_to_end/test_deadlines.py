"""Many clients, a model that is too slow for them, and no answer later than its deadline."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import httpx
import numpy as np
import pytest

from tests.end_to_end.conftest import RunningService
from tests.served_model import add_untrained_model

logger = logging.getLogger(__name__)

pytestmark = pytest.mark.slow

Start = Callable[[], RunningService]

# As docs/predict.md states it, for a machine that is not overloaded.
MARGIN_S = 0.05
# At the deadline one thread wakes another: the event loop, and the one that makes the answer.
WAKES_UNTIL_SPELLED = 2
# Then the one that writes the ledger, and back over the one that makes the answer and the loop to
# the client; and the loop was woken before all of this by the request, on the client's clock.
WAKES_UNTIL_RECEIVED = 7
SIDE_PX = 640
CLIENTS = 12
FRAMES_PER_CLIENT = 6
FRAME = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX), dtype=np.uint8).tobytes()
LAYOUT = {
    "Content-Type": "application/octet-stream",
    "X-Width": str(SIDE_PX),
    "X-Height": str(SIDE_PX),
    "X-Pixel-Format": "Mono8",
}


@dataclass(frozen=True)
class Answered:
    status: int
    verdict: str | None
    deadline_s: float
    elapsed_s: float
    served_s: float


def ask(client: httpx.Client, deadline_s: float) -> Answered:
    query = {"deadline_ms": 1000 * deadline_s}
    begin_s = time.perf_counter()
    answer = client.post("/predict", content=FRAME, headers=LAYOUT, params=query)
    elapsed_s = time.perf_counter() - begin_s
    body = answer.json()
    served_s = body.get("timings_ms", {}).get("total", 0) / 1000
    return Answered(answer.status_code, body.get("verdict"), deadline_s, elapsed_s, served_s)


class SchedulingLag:
    """How much too late this machine wakes a thread that does nothing but sleep."""

    def __init__(self) -> None:
        self.worst_s = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sleep)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sleep(self) -> None:
        nap_s = 0.005
        while not self._done.is_set():
            begin_s = time.perf_counter()
            time.sleep(nap_s)
            self.worst_s = max(self.worst_s, time.perf_counter() - begin_s - nap_s)


def test_no_answer_is_late_and_no_late_one_is_ok(start_service: Start) -> None:
    service = start_service()
    # Above every probability of an untrained network: whatever is inspected in time is OK.
    model = add_untrained_model(service.storage, "a", threshold=0.9999)
    service.client.deploy("default", model)
    with httpx.Client(base_url=service.url, timeout=60) as client:
        unhurried = [ask(client, 60) for _ in range(3)]
    assert [answer.verdict for answer in unhurried] == ["OK"] * 3
    frame_s = min(answer.elapsed_s for answer in unhurried)

    def many(seed: int) -> list[Answered]:
        deadlines = np.random.default_rng(seed).uniform(0.2, 8, FRAMES_PER_CLIENT) * frame_s
        with httpx.Client(base_url=service.url, timeout=60) as client:
            return [ask(client, deadline_s) for deadline_s in deadlines]

    with SchedulingLag() as lag, ThreadPoolExecutor(CLIENTS) as threads:
        answers = [answer for each in threads.map(many, range(CLIENTS)) for answer in each]

    assert {answer.status for answer in answers} <= {200, 429}
    given = [answer for answer in answers if answer.status == 200]
    verdicts = [answer.verdict for answer in given]
    latest_s = max(answer.elapsed_s - answer.deadline_s for answer in given)
    latest_as_served_s = max(answer.served_s - answer.deadline_s for answer in given)
    logger.info(
        "%.3f s a frame; %d answers, %d OK; the latest %.4f s after its deadline, "
        "%.4f s as served; this machine woke a bare thread %.4f s late",
        *(frame_s, len(given), verdicts.count("OK"), latest_s),
        *(latest_as_served_s, lag.worst_s),
    )
    assert set(verdicts) == {"OK", "NOT_INSPECTED"}, "the load must be neither light nor hopeless"
    for answer in given:
        assert answer.verdict == "NOT_INSPECTED" or answer.served_s <= answer.deadline_s
    # What the machine withholds from any thread is not the service's.
    assert latest_as_served_s <= MARGIN_S + WAKES_UNTIL_SPELLED * lag.worst_s
    assert latest_s <= MARGIN_S + WAKES_UNTIL_RECEIVED * lag.worst_s

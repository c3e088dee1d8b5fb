"""A running service under load: what is sent, what comes back, and what became of each request."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serve.expected_answers import ExpectedAnswer, expected_answer
from benchmarks.serve.judged_exchanges import (
    PERMITTED,
    Exchange,
    Outcome,
    could_serve,
    judge,
    repeated_requests,
)
from benchmarks.serve.load_clients import LoadClient, ModelSwapper
from benchmarks.serve.load_outcome import LoadOutcome
from benchmarks.serve.load_plan import LoadPlan
from benchmarks.serve.resident_memory import BOUND_MIB_A_MINUTE, MemoryWatch, trend
from benchmarks.serve.sent_frames import SentFrame, as_sent
from benchmarks.serve.trained_models import PRODUCT_SEED
from data.synthetic import draw_frame
from models import FrozenDetector, FrozenModel
from service.client import HairlineClient
from service.errors import StorageError
from service.ledger.journal import verified_entries
from service.serving.served_models import ServedModels
from service.storage import Storage

_ENCODINGS = (("JPEG", False), ("PNG", False), ("PNG", True), ("Mono8", False))
_FIRST_SEED = 501
# Of the run, before memory is looked at: arenas and caches fill up at first.
_WARM_UP_SHARE = 0.2
# A trend over less says nothing.
_LEAST_TREND_S = 180.0
_MOST_EXAMPLES = 5


class LoadedService:
    """A running service whose answers are checked one by one.

    Args:
        client: Of the service.
        url: Its address.
        api: Its API process.
        storage: Its storage directory, which this process reads.
    """

    def __init__(
        self, client: HairlineClient, url: str, api: psutil.Process, storage: Path
    ) -> None:
        self._client = client
        self._url = url
        self._api = api
        self._storage = Storage(storage)

    def run(self, plan: LoadPlan, models: dict[str, str]) -> LoadOutcome:
        """Load the service as planned with these models (names by id), and judge each answer."""
        prepared = _prepare(plan, self._storage, list(models))
        swapper = ModelSwapper(self._client, list(models))
        watch = MemoryWatch({"API": self._api})
        begin_s = time.perf_counter()
        exchanges = _loaded(plan, self._url, prepared.frames, swapper)
        watch.close()
        missing, trouble = _missing_in_ledger(self._storage, exchanges)
        return LoadOutcome(
            **_judged(plan, prepared, exchanges, swapper),
            missing_in_ledger=missing,
            ledger_trouble=trouble,
            memory=_memory(plan, watch, begin_s, swapper, len(models)),
            models=models,
        )


@dataclass(frozen=True)
class _Prepared:
    """Frames to send and what each model has to say of each."""

    frames: list[SentFrame]
    expected: list[dict[str, ExpectedAnswer]]
    engines: dict[str, str]
    left_out: int = 0
    flips: int = 0


def _prepare(plan: LoadPlan, storage: Storage, model_ids: Sequence[str]) -> _Prepared:
    """Draw frames, ask each model directly, and leave out frames that can't be checked."""
    loader = ServedModels(storage, "auto")
    try:
        models = {model_id: loader.load(model_id) for model_id in model_ids}
    finally:
        # What is asked here keeps the engine that it has now.
        loader.close()
    engines: dict[str, str] = {
        model_id: model.engine.name
        for model_id, model in models.items()
        if isinstance(model, FrozenModel)
    }
    prepared = _Prepared([], [], engines)
    left_out = 0
    for number in range(10 * plan.frames):
        frame = _drawn(plan, number)
        answers = _answers(models, frame, plan)
        if len(answers) < len(models):
            left_out += 1
            continue
        prepared.frames.append(frame)
        prepared.expected.append(answers)
        if len(prepared.frames) == plan.frames:
            flips = _flips(models, prepared)
            return replace(prepared, left_out=left_out, flips=flips)
    raise RuntimeError(f"{left_out} of {10 * plan.frames} frames hang on less than the tolerance")


def _drawn(plan: LoadPlan, number: int) -> SentFrame:
    """Return a frame that no model has learned from, good ones and defective ones in turns."""
    drawn = draw_frame(
        _FIRST_SEED + number,
        width_px=plan.width_px,
        height_px=plan.height_px,
        defects=bool(number % 2),
        product_seed=PRODUCT_SEED,
    )
    encoding, is_form = _ENCODINGS[number // 2 % len(_ENCODINGS)]
    return as_sent(drawn.pixels, encoding, is_form=is_form)


def _answers(
    models: Mapping[str, FrozenModel | FrozenDetector], frame: SentFrame, plan: LoadPlan
) -> dict[str, ExpectedAnswer]:
    """Return what models have to say of a frame; those are missing that can't be held to it."""
    pixels = frame.pixels()
    answers = {}
    for model_id, model in models.items():
        assert isinstance(model, FrozenModel)
        in_float32 = model.engine.name.endswith("fp32")
        tolerance = plan.tolerance if in_float32 else plan.coarse_tolerance
        answer = expected_answer(model, pixels, tolerance)
        if answer is not None:
            answers[model_id] = answer
    return answers


def _flips(models: Mapping[str, FrozenModel | FrozenDetector], prepared: _Prepared) -> int:
    """Return how many verdicts of engines are not those of eager torch.

    Side effects: the models are left with eager torch.
    """
    count = 0
    for model_id, model in models.items():
        assert isinstance(model, FrozenModel)
        model.use(model.reference)
        for frame, expected in zip(prepared.frames, prepared.expected, strict=True):
            count += model.inspect(frame.pixels()).verdict != expected[model_id].verdict
    return count


def _loaded(
    plan: LoadPlan, url: str, frames: Sequence[SentFrame], swapper: ModelSwapper
) -> list[Exchange]:
    """Run clients and swaps for as long as the plan says."""
    stop = threading.Event()
    clients = [
        LoadClient(number, url, frames, plan.deadline_ms, stop) for number in range(plan.clients)
    ]
    begin_s = time.perf_counter()
    try:
        for client in clients:
            client.start()
        turns = int(plan.seconds // plan.swap_every_s)
        for turn in range(1, turns):
            time.sleep(max(0.0, begin_s + turn * plan.swap_every_s - time.perf_counter()))
            if turn == max(2, turns // 2):
                swapper.roll_back()
            else:
                swapper.swap()
        time.sleep(max(0.0, begin_s + plan.seconds - time.perf_counter()))
    finally:
        stop.set()
        for client in clients:
            client.join()
    return [exchange for client in clients for exchange in client.exchanges]


def _judged(
    plan: LoadPlan, prepared: _Prepared, exchanges: Sequence[Exchange], swapper: ModelSwapper
) -> dict[str, Any]:
    """Return the outcome's fields that follow from the requests."""
    digests = [hashlib.sha256(frame.raw).hexdigest() for frame in prepared.frames]
    counts: Counter[Outcome] = Counter()
    examples: list[str] = []
    telling = 0
    for exchange in exchanges:
        expected = prepared.expected[exchange.frame]
        serving = could_serve(swapper.switches, exchange.asked_s, exchange.answered_s)
        latest_ms = plan.deadline_ms + plan.margin_ms
        outcome, why = judge(exchange, expected, digests[exchange.frame], serving, latest_ms)
        counts[outcome] += 1
        if outcome not in PERMITTED and len(examples) < _MOST_EXAMPLES:
            examples.append(f"{outcome}: {why}")
        if outcome == "right":
            telling += _tells(exchange.answer["model"]["id"], expected)
    waits = sorted(1000 * (one.answered_s - one.asked_s) for one in exchanges)
    return {
        "plan": plan,
        "counts": dict(counts),
        "examples": examples,
        "telling": telling,
        "frames_left_out": prepared.left_out,
        "engines": prepared.engines,
        "flips": prepared.flips,
        "switches": len(swapper.switches) - 1,
        "rolled_back": swapper.rolled_back,
        "repeated_requests": repeated_requests(exchanges),
        "waits_ms": {
            "median": waits[len(waits) // 2],
            "p99": waits[int(0.99 * (len(waits) - 1))],
            "longest": waits[-1],
        },
        "slowest_switch_ms": 1000
        * max(switch.confirmed_s - switch.asked_s for switch in swapper.switches[1:]),
    }


def _tells(model_id: str, expected: Mapping[str, ExpectedAnswer]) -> bool:
    own = expected[model_id]
    return all(own.is_told_from(one) for name, one in expected.items() if name != model_id)


def _missing_in_ledger(storage: Storage, exchanges: Sequence[Exchange]) -> tuple[int, str | None]:
    """Return how many answers a ledger that is verified on the way does not hold."""
    answered = {one.answer["request_id"] for one in exchanges if one.status == 200}
    try:
        for entry in verified_entries(storage.root / "ledger"):
            answered.discard(entry.get("request_id"))
    except StorageError as error:
        return len(answered), error.detail
    return len(answered), None


def _memory(
    plan: LoadPlan, watch: MemoryWatch, begin_s: float, swapper: ModelSwapper, model_count: int
) -> dict[str, Any]:
    """Return the trend of each process's memory once it is warm.

    Warm is after a fifth of the run, and not before each model has been in place.
    """
    every_model = swapper.switches[min(model_count, len(swapper.switches)) - 1].confirmed_s
    warm_s = max(begin_s + _WARM_UP_SHARE * plan.seconds, every_model)
    told = {}
    for name, samples in watch.samples.items():
        line = trend(samples, warm_s)
        judged = line is not None and plan.seconds >= _LEAST_TREND_S
        told[name] = {
            "trend": None if line is None else asdict(line),
            "is_flat": line.slope_mib_a_minute <= BOUND_MIB_A_MINUTE if line and judged else None,
            "bound_mib_a_minute": BOUND_MIB_A_MINUTE,
            "warm_after_s": warm_s - begin_s,
            "samples_mib": [
                [round(at - begin_s, 1), round(held / 1024**2, 1)] for at, held in samples
            ],
        }
    return told

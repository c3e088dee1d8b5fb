"""Requests under load and what became of them, each judged against what it had to be."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.serve.expected_answers import ExpectedAnswer

Outcome = Literal[
    "right",
    "not inspected",
    "refused for now",
    "lost",
    "mixed",
    "wrong",
    "server error",
    "other error",
    "late",
    "not recorded",
]
# What a line may meet and is told in so many words; the rest must not be.
PERMITTED: tuple[Outcome, ...] = ("right", "not inspected", "refused for now")
_BACK_PRESSURE = (429, 503)


@dataclass(frozen=True)
class Exchange:
    """One request under load.

    Attributes:
        frame: Its number.
        asked_s: On the monotonic clock of all clients.
        answered_s: The same.
        status: HTTP's; None if there was no answer.
        answer: The body, an object of JSON.
        trouble: Why there is none.
    """

    frame: int
    asked_s: float
    answered_s: float
    status: int | None
    answer: dict[str, Any]
    trouble: str | None = None


@dataclass(frozen=True)
class Switch:
    """A model put in another one's place: asked for at one time, confirmed at a later one."""

    model_id: str
    asked_s: float
    confirmed_s: float


def could_serve(switches: Sequence[Switch], asked_s: float, answered_s: float) -> set[str]:
    """Return the models that a request may have been given to.

    A model may serve from the moment it is asked for until the next one is confirmed.
    """
    ends = [switch.confirmed_s for switch in switches[1:]] + [float("inf")]
    return {
        switch.model_id
        for switch, end in zip(switches, ends, strict=True)
        if switch.asked_s <= answered_s and asked_s <= end
    }


def judge(
    exchange: Exchange,
    expected: Mapping[str, ExpectedAnswer],
    sha256: str,
    serving: set[str],
    latest_ms: float,
) -> tuple[Outcome, str]:
    """Return what became of a request, and for what is not permitted why.

    Args:
        exchange: The request.
        expected: What each model has to say of its frame.
        sha256: Of the frame.
        serving: The models that it may have been given to.
        latest_ms: The deadline and the margin beside it.
    """
    if exchange.status is None:
        return "lost", exchange.trouble or "no answer"
    if exchange.status in _BACK_PRESSURE:
        return "refused for now", str(exchange.answer.get("code"))
    if exchange.status != 200:
        kind: Outcome = "server error" if exchange.status >= 500 else "other error"
        return kind, f"{exchange.status} {exchange.answer.get('code')}"
    took_ms = 1000 * (exchange.answered_s - exchange.asked_s)
    if took_ms > latest_ms:
        return "late", f"after {took_ms:.0f} ms"
    return _judge_answer(exchange.answer, expected, sha256, serving)


def _judge_answer(
    answer: Mapping[str, Any],
    expected: Mapping[str, ExpectedAnswer],
    sha256: str,
    serving: set[str],
) -> tuple[Outcome, str]:
    model_id = answer["model"]["id"]
    if answer["image"]["sha256"] != sha256:
        return "mixed", "it is about another frame"
    if model_id not in serving:
        return "mixed", f"{model_id} did not serve at that time"
    if answer["ledger_sequence"] is None:
        return "not recorded", "; ".join(answer["warnings"])
    if answer["verdict"] == "NOT_INSPECTED":
        return "not inspected", "; ".join(answer["warnings"])
    if expected[model_id].holds(answer):
        return "right", ""
    others = [other for other, one in expected.items() if other != model_id and one.holds(answer)]
    if others:
        return "mixed", f"it names {model_id} and says what {others[0]} says"
    return "wrong", f"{answer['verdict']} with {len(answer['defects'])} defects from {model_id}"


def repeated_requests(exchanges: Sequence[Exchange]) -> int:
    """Return how many answers bear the identifier of another one."""
    seen = Counter(
        one.answer["request_id"] for one in exchanges if one.status == 200 and one.answer
    )
    return sum(count - 1 for count in seen.values())

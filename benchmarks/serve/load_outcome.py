"""What became of a run under load, and which promises it broke."""

from dataclasses import dataclass
from typing import Any

from benchmarks.serve.judged_exchanges import PERMITTED, Outcome
from benchmarks.serve.load_plan import LoadPlan


@dataclass(frozen=True)
class LoadOutcome:
    """What became of a run.

    Attributes:
        plan: What was done.
        counts: Requests by what became of them.
        examples: Of what is not permitted, with its reason.
        telling: Answers in which another model's would have been seen by its content.
        frames_left_out: Drawn frames whose answers hang on less than the tolerance.
        engines: That served, by model.
        flips: Verdicts of these engines that are not eager torch's, on all models and frames.
        switches: Models put in place.
        rolled_back: Which model a rollback brought back.
        repeated_requests: Answers that bear the identifier of another one.
        missing_in_ledger: Answers that the verified ledger does not hold.
        ledger_trouble: Why it can't be verified.
        waits_ms: Median, 99th percentile and longest wait of a client.
        slowest_switch_ms: From asking for a model to its confirmation.
        memory: Of the service's processes, a trend and the samples.
        models: What served, by name.
    """

    plan: LoadPlan
    counts: dict[Outcome, int]
    examples: list[str]
    telling: int
    frames_left_out: int
    engines: dict[str, str]
    flips: int
    switches: int
    rolled_back: str | None
    repeated_requests: int
    missing_in_ledger: int
    ledger_trouble: str | None
    waits_ms: dict[str, float]
    slowest_switch_ms: float
    memory: dict[str, Any]
    models: dict[str, str]

    def violations(self) -> list[str]:
        """Return each promise that was broken, in words."""
        found = [
            f"{count} {outcome}"
            for outcome, count in self.counts.items()
            if outcome not in PERMITTED and count
        ]
        if self.repeated_requests:
            found.append(f"{self.repeated_requests} answers bear another one's identifier")
        if self.missing_in_ledger:
            found.append(f"{self.missing_in_ledger} answers are not in the ledger")
        if self.ledger_trouble:
            found.append(f"the ledger: {self.ledger_trouble}")
        if self.flips:
            found.append(f"{self.flips} verdicts are not those of eager torch")
        if self.rolled_back is None:
            found.append("nothing was rolled back")
        for name, held in self.memory.items():
            if held["is_flat"] is False:
                found.append(f"the memory of the {name} grows")
        return found

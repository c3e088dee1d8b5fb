"""The page of models swapped under load, written from its results alone."""

from typing import Any

from benchmarks.serve.judged_exchanges import PERMITTED

_MEANINGS = {
    "right": "verdict, classes, scores, boxes and areas are those of the model it names",
    "not inspected": "the deadline passed first, and the answer says so",
    "refused for now": "429 or 503, with the time to wait",
    "lost": "no answer",
    "mixed": "another frame's, another model's, or of a model that did not serve then",
    "wrong": "what no model says of the frame",
    "server error": "5xx other than 503",
    "other error": "4xx other than 429",
    "late": "after the deadline and the margin",
    "not recorded": "the ledger did not take it",
}


_HEAD = (
    "# Models swapped under load",
    "Written by `python -m benchmarks.serve load`; don't edit it.",
)


def render(told: dict[str, Any] | None) -> str:
    """Return the page; without results it says so."""
    if told is None:
        return "\n\n".join([*_HEAD, "Not measured."]) + "\n"
    plan, machine = told["plan"], told["machine"]
    violations = told["violations"]
    verdict = f"**Broken: {'; '.join(violations)}.**" if violations else "No promise was broken."
    counts = told["counts"]
    rows = [
        f"| {name}{'' if name in PERMITTED else ' (must be 0)'} | {counts.get(name, 0)} | {text} |"
        for name, text in _MEANINGS.items()
    ]
    parts = [
        *_HEAD,
        (
            f"`{machine['command']}` on {machine['processor']}, {machine['cores']} cores; load "
            f"average {machine['load_before']} before and {machine['load_after']} after."
        ),
        _what_was_done(told),
        verdict,
        "\n".join(["| request | count | means |", "|---|---:|---|", *rows]),
        *_examples(told["examples"]),
        _figures(told, sum(counts.values()) / plan["seconds"]),
        _memory(told["memory"]),
    ]
    return "\n\n".join(parts) + "\n"


def _what_was_done(told: dict[str, Any]) -> str:
    plan, left_out = told["plan"], told["frames_left_out"]
    steps = sorted({recipe["steps"] for recipe in plan["recipes"]})
    networks = [recipe["job"]["model"]["encoder"] for recipe in plan["recipes"]]
    engines = ", ".join(told["engines"].values())
    return (
        f"{plan['clients']} clients for {plan['seconds'] / 60:g} minutes, each with one open "
        f"connection and no pause, send {plan['frames']} frames of {plan['width_px']}x"
        f"{plan['height_px']} as JPEG, PNG, PNG in a form and Mono8, in an order of their own. "
        f"{len(networks)} models that the service trained in {', '.join(map(str, steps))} steps "
        f"({', '.join(networks)}; engines {engines}) take turns every {plan['swap_every_s']:g} s; "
        "halfway one turn is a rollback. Before the load this process asked each model directly, "
        f"by the same engine, about each frame; {told['flips']} of these verdicts are not those of "
        "eager torch. An answer is right if its verdict is the same and each defect lies between "
        f"those found at thresholds {plan['tolerance']:g} in logits below and above the model's, "
        f"its score within the same ({plan['coarse_tolerance']:g} where the engine is not of "
        "float32, since frames looked at together are rounded elsewhere there); frames whose "
        f"answer hangs on less were left out before ({left_out} of {left_out + plan['frames']} "
        "drawn). An answer may come from a model from the moment it was asked for until the next "
        f"one was confirmed. Deadline {plan['deadline_ms']:g} ms, margin {plan['margin_ms']:g} ms."
    )


def _examples(examples: list[str]) -> list[str]:
    return ["\n".join(f"- {example}" for example in examples)] if examples else []


def _figures(told: dict[str, Any], rate: float) -> str:
    waits = told["waits_ms"]
    ledger = told["ledger_trouble"] or f"{told['missing_in_ledger']} answers missing, chain intact"
    lines = [
        ("answers a second", f"{rate:.1f}"),
        ("client's wait: median", f"{waits['median']:.0f} ms"),
        ("client's wait: 99 of 100 within", f"{waits['p99']:.0f} ms"),
        ("client's wait: longest", f"{waits['longest']:.0f} ms"),
        ("swaps, the rollback among them", str(told["switches"])),
        ("slowest swap", f"{told['slowest_switch_ms']:.0f} ms"),
        ("right answers that no other model could have given", str(told["telling"])),
        ("answers with another one's request id", str(told["repeated_requests"])),
        ("ledger", ledger),
    ]
    return "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in lines)])


def _memory(memory: dict[str, Any]) -> str:
    lines = ["## Resident memory", ""]
    for name, held in memory.items():
        line = held["trend"]
        if line is None:
            lines.append(f"{name}: too few samples.")
            continue
        state = {
            True: "flat",
            False: "**it grows**",
            None: "not judged, since the run was too short",
        }[held["is_flat"]]
        lines.append(
            f"{name}: {line['mean_mib']:.0f} MiB, slope {line['slope_mib_a_minute']:+.2f} MiB a "
            f"minute (standard error {line['error_mib_a_minute']:.2f}, least squares over "
            f"{line['samples']} samples, one a second); bound {held['bound_mib_a_minute']:g}: "
            f"{state}. The first {held['warm_after_s']:.0f} s are left out: a fifth of the run, "
            "and not less than until each model has been in place."
        )
    return "\n".join(lines)

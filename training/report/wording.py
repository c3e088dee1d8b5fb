"""Rates as sentences: no rate without its denominator, and no miss in n is no promise of none."""

from collections.abc import Mapping
from typing import Any

from models import OperatingPoint
from models.certificate import exact_interval

Rate = Mapping[str, Any]

# Below this a class's recall is told by a handful of defects.
FEW_DEFECTS = 10


def percent(share: float) -> str:
    """Return a share as a percentage with at least two significant digits."""
    value = 100 * share
    # Away from both ends a tenth of a percent is more than any interval resolves.
    near_end = 0 < value < 1 or 99 < value < 100
    return f"{value:.2f} %" if near_end else f"{value:.1f} %"


def say_rate(rate: Rate) -> str:
    """Return events, denominator and what the exact 95 % interval allows."""
    events, n = rate["events"], rate["n"]
    if n == 0:
        return "not known: there is none to judge by"
    if events == 0:
        return f"0 of {n}; the true rate may be up to {percent(rate['high'])}"
    if events == n:
        return f"{n} of {n}; the true rate may be as low as {percent(rate['low'])}"
    interval = f"{percent(rate['low'])} to {percent(rate['high'])}"
    return f"{events} of {n} ({percent(rate['rate'])}; {interval})"


def statements(metrics: Mapping[str, Any]) -> list[str]:
    """Return what the test frames say about escape and overkill, in whole sentences."""
    said = []
    for unit, rates in (("frames", metrics), ("parts", metrics["by_part"])):
        if unit == "parts" and rates["most_frames"] <= 1:
            continue
        if rates["escape"]["n"]:
            said.append(f"Escape: of the defective {unit}, {_called(rates['escape'], 'OK')}.")
        if rates["overkill"]["n"]:
            said.append(f"Overkill: of the good {unit}, {_called(rates['overkill'], 'NG')}.")
    return said + unsupported_figures(metrics)


def _called(rate: Rate, verdict: str) -> str:
    """Return how many were called so, and what the exact 95 % interval allows."""
    events, n = rate["events"], rate["n"]
    counted = f"{events} of {n} {'was' if events == 1 else 'were'} called {verdict}"
    if events == 0:
        return f"{counted}; the true rate may be up to {percent(rate['high'])} (95 % interval)"
    if events == n:
        return f"{counted}; the true rate may be as low as {percent(rate['low'])} (95 % interval)"
    interval = f"95 % interval {percent(rate['low'])} to {percent(rate['high'])}"
    return f"{counted}: {percent(rate['rate'])} ({interval})"


def unsupported_figures(metrics: Mapping[str, Any]) -> list[str]:
    """Return what the test frames can't tell, for want of defective or good ones."""
    lacking = []
    if metrics["escape"]["n"] == 0:
        lacking.append(
            "No test frame shows a defect: escape, recall and pixel scores can't be stated."
        )
    if metrics["overkill"]["n"] == 0:
        lacking.append(
            "No test frame is good: overkill and false regions a good frame can't be stated."
        )
    if metrics["escape"]["n"]:
        lacking += [
            f"No test frame shows {name!r}: whether it is found can't be stated."
            for name, region in metrics["regions"].items()
            if region["recall"]["n"] == 0
        ]
    return lacking


def say_certificate(name: str, certificate: Mapping[str, Any]) -> str:
    """Return what calibration parts prove of a class's escape rate, in a sentence."""
    asked = (
        f"at most {percent(certificate['max_escape'])} of the parts with {name!r} called OK, with "
        f"{percent(certificate['confidence'])} confidence"
    )
    n = certificate["defective_parts"]
    if certificate["is_proven"]:
        return (
            f"Proven on {n} calibration parts: {asked}. {certificate['escapes']} of them lie below "
            f"the threshold; the bound is {percent(certificate['bound'])}. "
            f"{certificate['false_alarms']} of {certificate['good_parts']} good parts are rejected."
        )
    # Parts that bound anything leave some of the rate, however few they are.
    limit = (
        f"{certificate['never_rejected']} of them are rejected at no threshold"
        if certificate["bound"] == 1
        else f"which can't prove less than {percent(certificate['bound'])}"
    )
    return (
        f"Not proven: {asked}. {n} calibration parts show it, {limit}; "
        f"{certificate['missing_parts']} more of which none is missed would prove it. The "
        "threshold is the one chosen without a bound."
    )


def unproven_escapes(point: OperatingPoint) -> list[str]:
    """Return a sentence for each class whose asked bound on escapes could not be proven."""
    certificates = {
        name: chosen.evidence.get("certificate") for name, chosen in point.classes.items()
    }
    return [
        say_certificate(name, found)
        for name, found in certificates.items()
        if found is not None and not found["is_proven"]
    ]


def caveats(report: Mapping[str, Any]) -> list[str]:
    """Return what limits the figures that can be stated."""
    metrics = report["metrics"]
    said = []
    for what, rate in (("defective", metrics["escape"]), ("good", metrics["overkill"])):
        if rate["n"]:
            best = percent(exact_interval(0, rate["n"])["high"])
            label = "an escape" if what == "defective" else "an overkill"
            said.append(
                f"{rate['n']} {what} test frames can't show {label} rate below {best}, however "
                "good the model is."
            )
    said += [
        f"The recall of {name!r} rests on {region['recall']['n']} labelled defects."
        for name, region in metrics["regions"].items()
        if 0 < region["recall"]["n"] < FEW_DEFECTS
    ]
    said += [
        f"The threshold of {name!r} is the default, not a choice: {chosen['reason']}."
        for name, chosen in report["operating_point"]["classes"].items()
        if chosen["basis"] == "default"
    ]
    if metrics.get("by_part", {}).get("most_frames") == 1:
        said.append(
            "Every frame is a part of its own: frames of one part, if there are any, may lie in "
            "training and in test."
        )
    unproven = [
        name
        for name, chosen in report["operating_point"]["classes"].items()
        if not chosen["evidence"].get("certificate", {}).get("is_proven", False)
    ]
    if unproven:
        aim = "F1 of defects found" if report.get("task") == "detection" else "pixel Dice"
        said.append(
            f"The thresholds of {', '.join(unproven)} maximize {aim} on the calibration frames; no "
            "escape rate is guaranteed."
        )
    return said

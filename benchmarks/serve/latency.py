"""Where an answer's time goes, frame by frame, beside the same network behind a plain endpoint.

One client sends frames in turns over connections that stay open.  The service's overhead is all
that the client waits for but decoding and the model.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.data.running_service import running_service
from benchmarks.quartiles import quartiles
from benchmarks.results_page import spread
from benchmarks.serve.page import PAGE, accelerator, add_device, section_of
from benchmarks.serve.sent_frames import LineClient, SentFrame, as_sent
from benchmarks.serve.shown_frames import SHOWN, Shown, shown_frames
from benchmarks.serve.trained_models import Recipe, in_colour, prepared_engine, trained_model
from models import resolve_device
from service.serve import QUIET_ENVIRONMENT

WORK = Path("benchmark-results/serve")
# Of the issue that a line has with a service: what it adds to decoding and to the model.
OVERHEAD_TARGET_MS = 5.0
_STAGES = ("decode", "queue", "model", "postprocess")
# A GPU's engine records a size that comes for the second time.
_WARM_UP_ROUNDS = 2

# Each kind of frame twice: one answer has no quartiles.
_LEAST_ROUNDS = 2 * len(SHOWN)

Milliseconds = dict[str, float]


@dataclass(frozen=True)
class Profile:
    """How much a run costs.

    Attributes:
        width_px: Of the frames that are sent.
        height_px: Of the same.
        rounds: Beside the warm-up.
        has_engines: Whether the fastest engine is chosen for each model before; else torch serves.
        mono: The model of JPEG, PNG and Mono8.
        colour: The model of RGB8; None leaves that kind out.
    """

    width_px: int
    height_px: int
    rounds: int
    has_engines: bool
    mono: Recipe
    colour: Recipe | None


def _recipes(**common: Any) -> dict[str, Recipe]:
    mono = Recipe("latency", **common)
    return {"mono": mono, "colour": Recipe("latency in colour", is_colour=True, **common)}


FULL = Profile(
    2500,
    2000,
    rounds=12,
    has_engines=True,
    **_recipes(
        frames=40,
        width_px=1024,
        height_px=896,
        # With fewer the model takes the surface for stains, dozens on a frame.
        steps=500,
        job={
            "model": {"encoder": "resnet18"},
            "batch_size": 2,
            "resolution": {"mode": "crop", "height_px": 256, "width_px": 256, "defect_rate": 0.7},
            # The marks run one way in every frame of the product; mirrored ones would be another.
            "augmentation": {"flips": False},
        },
    ),
)
QUICK = Profile(
    320,
    256,
    rounds=6,
    has_engines=False,
    **_recipes(
        frames=8,
        width_px=160,
        height_px=128,
        steps=4,
        job={"model": {"encoder": "resnet18", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}},
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's arguments."""
    PAGE.add_arguments(parser)
    add_device(parser)
    parser.add_argument(
        "--without-colour", action="store_true", help="leave RGB8 and its model's training out"
    )
    parser.add_argument(
        "--rounds", type=int, help=f"default {FULL.rounds}, at least {_LEAST_ROUNDS}"
    )
    parser.add_argument("--work", type=Path, default=WORK, help="storage and drawn frames")


def run(arguments: argparse.Namespace) -> int:
    """Measure and write the page; return the exit status."""
    device = resolve_device(arguments.device)

    def measure(quick: bool) -> dict[str, Any]:
        profile = QUICK if quick else FULL
        if arguments.without_colour:
            profile = replace(profile, colour=None)
        rounds = max(arguments.rounds or profile.rounds, _LEAST_ROUNDS)
        return measure_latency(profile, rounds, arguments.work, device)

    options = [] if arguments.rounds is None else ["--rounds", str(arguments.rounds)]
    options += ["--without-colour"] if arguments.without_colour else []
    return PAGE.record(section_of("latency", device), arguments, measure, tuple(options))


def measure_latency(
    profile: Profile, rounds: int, work: Path, device: torch.device
) -> dict[str, Any]:
    """Return the section of one run.

    Side effects: keeps frames, storage and trained models in ``work``; starts two services.
    """
    work.mkdir(parents=True, exist_ok=True)
    # The service and its worker read it.
    os.environ["HAIRLINE_DEVICE"] = device.type
    recipes = {"default": profile.mono}
    if profile.colour is not None:
        recipes["colour"] = profile.colour
    with running_service(work) as (client, url, api):
        models = {name: trained_model(client, recipe, work) for name, recipe in recipes.items()}
        for name, model_id in models.items():
            if profile.has_engines:
                prepared_engine(client, model_id)
            client.deploy(name, model_id)
        bundle = work / "storage" / "bundles" / models["default"]
        with plain_endpoint(bundle, device) as plain_url:
            contestants = Contestants(url, plain_url, profile)
            measured = contestants.measure(rounds)
        threads = api.num_threads()
    return {
        **section(measured, profile, rounds),
        "accelerator": accelerator(device),
        "answers": measured,
        "api_threads": threads,
    }


@contextlib.contextmanager
def plain_endpoint(bundle: Path, device: torch.device) -> Iterator[str]:
    """Yield the address of the plain endpoint, in a process like the service's own."""
    command = [sys.executable, "-m", "benchmarks.serve.plain_endpoint", str(bundle), device.type]
    environment = {**QUIET_ENVIRONMENT, **os.environ}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:  # noqa: S603 - our own program.
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


class Contestants:
    """The service and the plain endpoint, asked in turns about the same frames.

    Args:
        url: The service's.
        plain_url: The plain endpoint's.
        profile: The frames' size.
    """

    def __init__(self, url: str, plain_url: str, profile: Profile) -> None:
        self._service, self._plain = LineClient(url), LineClient(plain_url)
        drawn = shown_frames(profile.width_px, profile.height_px)
        self._arms = {
            "JPEG": _each_sent(drawn, "JPEG"),
            "PNG": _each_sent(drawn, "PNG"),
            "PNG, form": _each_sent(drawn, "PNG", is_form=True),
            "Mono8": _each_sent(drawn, "Mono8"),
        }
        if profile.colour is not None:
            tinted = {shown: in_colour(pixels) for shown, pixels in drawn.items()}
            self._arms["RGB8"] = _each_sent(tinted, "RGB8")

    def measure(self, rounds: int) -> dict[str, list[dict[str, Any]]]:
        """Return each arm's answers, a warm-up left out.

        Every second round runs backwards, so that no arm always follows the same neighbour.
        """
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in self._arms}
        for number in range(rounds + _WARM_UP_ROUNDS):
            order = list(self._arms) if number % 2 == 0 else list(self._arms)[::-1]
            for name in order:
                shown = SHOWN[number % len(SHOWN)]
                answer = {"shown": shown, **self._ask(name, self._arms[name][shown])}
                if number >= _WARM_UP_ROUNDS:
                    answers[name].append(answer)
                    print(f"{name}: {answer['service']['total']:.1f} ms")
        self._service.close()
        self._plain.close()
        return answers

    def _ask(self, arm: str, frame: SentFrame) -> dict[str, Any]:
        query = {"deployment": "colour"} if arm == "RGB8" else {}
        received = self._service.ask("/predict", frame, **query)
        answer = json.loads(received.raw)
        if received.status != 200:
            raise RuntimeError(f"{arm}: {received.status} {answer}")
        found: dict[str, Any] = {
            "service": split_time(received.total_ms, answer["timings_ms"]),
            "verdict": answer["verdict"],
            "defects": len(answer["defects"]),
            "engine": answer["model"].get("engine"),
            "bytes": len(frame.raw),
            "nothing_ms": self._plain.ask("/nothing", frame).total_ms,
        }
        if frame.is_form or arm == "JPEG":
            as_form = frame if frame.is_form else SentFrame(arm, frame.raw, "image/jpeg", {}, True)
            plain = self._plain.ask("/predict", as_form)
            plain_answer = json.loads(plain.raw)
            found["plain"] = split_time(plain.total_ms, plain_answer["timings_ms"])
            found["plain_verdict"] = plain_answer["verdict"]
        return found


def _each_sent(
    frames: Mapping[Shown, NDArray[np.uint8]], encoding: str, *, is_form: bool = False
) -> dict[Shown, SentFrame]:
    return {shown: as_sent(pixels, encoding, is_form=is_form) for shown, pixels in frames.items()}


def split_time(client_ms: float, timings_ms: Mapping[str, float]) -> Milliseconds:
    """Return where the time went that a client waited.

    Args:
        client_ms: From the first byte sent to the last one received.
        timings_ms: As the answer tells them; ``total`` may be missing.

    Returns:
        The stages that are told, ``rest`` of what the service says that it took, ``http`` beyond
        that, ``overhead`` for all but decoding and the model, and the client's ``total``.
    """
    stages = {name: timings_ms[name] for name in _STAGES if name in timings_ms}
    told = timings_ms.get("total", sum(timings_ms.values()))
    return {
        **stages,
        "rest": told - sum(stages.values()),
        "http": client_ms - told,
        "overhead": client_ms - timings_ms["decode"] - timings_ms["model"],
        "total": client_ms,
    }


def section(
    answers: Mapping[str, Sequence[Mapping[str, Any]]], profile: Profile, rounds: int
) -> dict[str, Any]:
    """Return the notes and the table of one run."""
    told = "; ".join(f"{shown}: {_overheads(answers, shown)}" for shown in SHOWN)
    verdict = f"**Overhead at the median, of a target of {OVERHEAD_TARGET_MS:g} ms: {told}.**"
    return {
        "notes": [_what_was_done(answers, profile, rounds), verdict, *_notes(answers)],
        "columns": [
            "frame",
            "found",
            "MB",
            "client waits",
            *_STAGES,
            "rest",
            "HTTP",
            "**overhead**",
            "same bytes to nothing",
            "plain: client waits",
            "plain: overhead",
            "plain / service",
        ],
        "rows": [
            _row(f"{name}, {shown}", among)
            for name, arm in answers.items()
            for shown in SHOWN
            if (among := _of(arm, shown))
        ],
    }


def _of(arm: Sequence[Mapping[str, Any]], shown: Shown) -> list[Mapping[str, Any]]:
    return [answer for answer in arm if answer["shown"] == shown]


def _overheads(answers: Mapping[str, Sequence[Mapping[str, Any]]], shown: Shown) -> str:
    """Return the overhead of each kind of sending."""
    return ", ".join(
        f"{name} {median(answer['service']['overhead'] for answer in among):.1f} ms"
        for name, arm in answers.items()
        if (among := _of(arm, shown))
    )


def _what_was_done(
    answers: Mapping[str, Sequence[Mapping[str, Any]]], profile: Profile, rounds: int
) -> str:
    engines = {str(answer["engine"] or "not named") for arm in answers.values() for answer in arm}
    recipe = profile.mono
    network = recipe.job["model"]
    colour = "" if profile.colour is None else "; another one in colour for RGB8"
    return (
        f"Frames of {profile.width_px}x{profile.height_px}, one that is good, one with a few "
        f"defects and one onto which those of a dozen frames were copied in turns, {rounds} rounds "
        "after a warm-up; `found` is how many regions the model reports; milliseconds, medians, "
        f"quartiles in brackets. The model: U-Net on {network['encoder']}, trained by the service "
        f"in {recipe.steps} steps on "
        f"{recipe.frames} drawn frames of {recipe.width_px}x{recipe.height_px}{colour}. Engine: "
        f"{', '.join(sorted(engines))}. `client waits` is on the client's clock, from "
        "the first byte sent to the last one received; `rest` is what the service took beside "
        "the stages it names; `HTTP` is the client's time beyond that; the overhead is all "
        "but decode and model. `same bytes to nothing` goes to an endpoint that reads the body and "
        f"answers. Plain: {Path(__file__).parent.name}/plain_endpoint.py, FastAPI and eager torch "
        "in a process of the same environment; it takes picture files in forms alone, and its "
        "JPEG stands beside a body of the service."
    )


def _notes(answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    compared = [answer for arm in answers.values() for answer in arm if "plain" in answer]
    same = sum(answer["verdict"] == answer["plain_verdict"] for answer in compared)
    verdicts = [answer["verdict"] for arm in answers.values() for answer in arm]
    told = (
        f"Verdicts of the service: {verdicts.count('OK')} OK, {verdicts.count('NG')} NG. The plain "
        f"endpoint gave the same one in {same} of {len(compared)} answers."
    )
    return [told]


def _row(name: str, arm: Sequence[Mapping[str, Any]]) -> list[str]:
    service = [answer["service"] for answer in arm]
    plain = [answer["plain"] for answer in arm if "plain" in answer]
    megabytes = median(answer["bytes"] for answer in arm) / 1e6
    found = median(answer["defects"] for answer in arm)
    row = [name, f"{found:.0f}", f"{megabytes:.1f}", _middle(service, "total")]
    row += [_middle(service, stage) for stage in (*_STAGES, "rest", "http")]
    row.append(spread(quartiles([answer["overhead"] for answer in service]), ".1f"))
    row.append(f"{median(answer['nothing_ms'] for answer in arm):.1f}")
    if not plain:
        return [*row, "", "", ""]
    ratios = [other["total"] / own["total"] for own, other in zip(service, plain, strict=True)]
    row += [_middle(plain, "total"), spread(quartiles([one["overhead"] for one in plain]), ".1f")]
    return [*row, spread(quartiles(ratios))]


def _middle(times: Sequence[Milliseconds], stage: str) -> str:
    values = [one[stage] for one in times if stage in one]
    return f"{median(values):.1f}" if values else "not told"

"""Clients that never pause while models are swapped beneath them, each answer checked.

Each answer is compared with what the model that it names says of that frame when it is asked
directly, in this process and before the load.
"""

import argparse
import json
import os
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.data.running_service import running_service
from benchmarks.norm.processor import processor_name
from benchmarks.serve.load_outcome import LoadOutcome
from benchmarks.serve.load_page import render
from benchmarks.serve.load_plan import FULL, QUICK, LoadPlan
from benchmarks.serve.loaded_service import LoadedService
from benchmarks.serve.trained_models import prepared_engine, trained_model

WORK = Path("benchmark-results/serve-load")
RESULTS = Path("docs/benchmarks/serve-load.json")
QUICK_RESULTS = Path("benchmark-results/serve-load-quick.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's arguments."""
    parser.add_argument("--minutes", type=float, help=f"default {FULL.seconds / 60:g}")
    parser.add_argument("--clients", type=int, default=FULL.clients)
    parser.add_argument("--swap-every", type=float, help=f"seconds, default {FULL.swap_every_s:g}")
    parser.add_argument("--quick", action="store_true", help=f"short, into {QUICK_RESULTS}")
    parser.add_argument("--work", type=Path, default=WORK, help="storage and drawn frames")
    parser.add_argument("--results", type=Path, help=f"JSON file (default {RESULTS})")


def run(arguments: argparse.Namespace) -> int:
    """Run the load and write the page; the exit status is 1 if a promise was broken."""
    plan = QUICK if arguments.quick else FULL
    plan = replace(plan, clients=arguments.clients)
    if arguments.minutes is not None:
        plan = replace(plan, seconds=60 * arguments.minutes)
    if arguments.swap_every is not None:
        plan = replace(plan, swap_every_s=arguments.swap_every)
    load_before = os.getloadavg()[0]
    outcome = run_load(plan, arguments.work)
    machine = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "load_before": round(load_before, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "command": shlex.join(["python", "-m", "benchmarks.serve", *sys.argv[1:]]),
    }
    path: Path = arguments.results or (QUICK_RESULTS if arguments.quick else RESULTS)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {**asdict(outcome), "violations": outcome.violations(), "machine": machine}
    path.write_text(json.dumps(told, indent=1) + "\n")
    write_page(path)
    print(f"broken promises: {outcome.violations() or 'none'}")
    return 1 if outcome.violations() else 0


def write_page(path: Path) -> None:
    """Write the page of a file of results, which need not exist."""
    page = path.with_suffix(".md")
    page.write_text(render(json.loads(path.read_text()) if path.exists() else None))
    print(f"wrote {page}")


def run_load(plan: LoadPlan, work: Path) -> LoadOutcome:
    """Train what is not trained yet, load the service, and judge each answer.

    Side effects: keeps frames, storage and trained models in ``work``; starts the service.
    """
    work.mkdir(parents=True, exist_ok=True)
    with running_service(work) as (client, url, api):
        models = {trained_model(client, recipe, work): recipe.name for recipe in plan.recipes}
        if plan.has_engines:
            for model_id in models:
                prepared_engine(client, model_id)
        return LoadedService(client, url, api, work / "storage").run(plan, models)

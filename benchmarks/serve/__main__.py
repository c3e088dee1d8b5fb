"""``python -m benchmarks.serve COMMAND``: one benchmark a command, each with its own options."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "latency": ("latency", "where an answer's time goes, beside a plain FastAPI endpoint"),
    "busy": ("busy", "what a thread of the API that computes costs the answers beside it"),
    "load": ("load", "clients that never pause while models are swapped, each answer checked"),
    "runtimes": ("runtimes", "every engine's speed, memory and verdicts beside eager torch"),
    "runtimes-wide": ("runtimes", "the same of a U-Net with its library's own, wider decoder"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        # Only the module of the named command is imported: each needs libraries of its own.
        if argv[:1] == [name]:
            module = importlib.import_module(f"benchmarks.serve.{module_name}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    commands.add_parser("page", help="write both pages anew from the results that there are")
    arguments = parser.parse_args(argv)
    if arguments.command == "page":
        return write_pages()
    # A benchmark asks for engines where it measures them: one that got ready in between would be
    # another runtime than the one that is measured.
    os.environ.setdefault("HAIRLINE_PREPARE_ENGINES", "false")
    status: int = arguments.run(arguments)
    return status


def write_pages() -> int:
    """Write both pages from the committed results and return the exit status."""
    from benchmarks.serve import load
    from benchmarks.serve.page import PAGE

    PAGE.write(PAGE.results)
    load.write_page(load.RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())

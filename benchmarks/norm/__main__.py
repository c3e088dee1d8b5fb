"""``python -m benchmarks.norm COMMAND``: one benchmark a command, each with its own options."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "accuracy": ("accuracy", "train small networks on real defect images under each method"),
    "accuracy-report": ("accuracy_report", "write the accuracy tables and plots"),
    "cost": ("cost", "measure a training step's time and memory"),
    "slopes": ("slopes", "compare forms of slope by how they predict a past variance"),
    "conversions": ("conversions", "list what converts in common segmentation and detection nets"),
}
EVERYTHING = "all"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.norm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        # Only the module of the named command is imported: each needs libraries of its own.
        if argv[:1] == [name]:
            module = importlib.import_module(f"benchmarks.norm.{module_name}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    commands.add_parser(EVERYTHING, help="all of it with its defaults; hours on a CPU")
    arguments = parser.parse_args(argv)
    if arguments.command == EVERYTHING:
        return max(main([name]) for name in ("cost", "conversions", "accuracy", "accuracy-report"))
    status: int = arguments.run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())

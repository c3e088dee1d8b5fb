"""``python -m benchmarks.data COMMAND``: one benchmark a command, each with its own options."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "interrupted-upload": (
        "interrupted_upload",
        "upload an archive while client and server are killed in turn",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        # Only the module of the named command is imported: each needs libraries of its own.
        if argv[:1] == [name]:
            module = importlib.import_module(f"benchmarks.data.{module_name}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    status: int = arguments.run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())

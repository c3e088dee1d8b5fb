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
    "import": ("import_rate", "take frames in through the service, against unzip and cp"),
    "decode": ("decode", "decode and vary frames, against cv2 alone"),
    "listing": ("listing", "list, count and freeze a small and a large data set"),
}
EVERYTHING = "all"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == [EVERYTHING]:
        return max(main([name, *argv[1:]]) for name in ("import", "decode", "listing"))
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
    commands.add_parser(EVERYTHING, help="import, decode and listing, with the same options")
    arguments = parser.parse_args(argv)
    status: int = arguments.run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())

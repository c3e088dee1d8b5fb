"""``python -m service.cli`` is ``hairline``."""

from service.cli.commands import main

main()

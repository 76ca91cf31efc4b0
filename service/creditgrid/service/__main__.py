"""``python -m creditgrid.service`` runs the ``commands``."""

import signal
import sys


def _exit(*_: object) -> None:
    sys.exit(0)


if __name__ == "__main__":
    # The imports take seconds; a signal during them is a normal exit too.
    sigterm, sigint = signal.signal(signal.SIGTERM, _exit), signal.signal(signal.SIGINT, _exit)
    from creditgrid.service.commands import cli

    signal.signal(signal.SIGTERM, sigterm)
    signal.signal(signal.SIGINT, sigint)
    cli(prog_name="python -m creditgrid.service")

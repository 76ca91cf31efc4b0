"""``python -m creditgrid.service``; ``commands`` has what can be asked of it."""

import signal
import sys


def _leave(*_: object) -> None:
    sys.exit(0)


if __name__ == "__main__":
    # All that is imported takes seconds, in which a service can be stopped too.
    ours, theirs = signal.signal(signal.SIGTERM, _leave), signal.signal(signal.SIGINT, _leave)
    from creditgrid.service.commands import cli

    signal.signal(signal.SIGTERM, ours)
    signal.signal(signal.SIGINT, theirs)
    cli(prog_name="python -m creditgrid.service")

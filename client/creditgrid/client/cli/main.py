"""The command line, ``creditgrid``; every failure is one readable paragraph and a stable exit code.

====  ==================================================================
0     done
1     the sweep failed or was cancelled, or something unexpected happened
2     bad input: a spec, a query, an option
3     no service answers
4     no such sweep, task, artifact or experiment
5     the request does not fit the current state
6     no token, a wrong one, or one that does not allow it
130   Ctrl-C
====  ==================================================================
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence

import typer

from creditgrid.client import errors
from creditgrid.client.cli import control, data, gc, local, logs, people, reproduce, sweeps, tasks, units
from creditgrid.core.errors import CodeError, CreditGridError, SpecError

EXIT_CODES: dict[type[CreditGridError], int] = {
    SpecError: 2,
    CodeError: 2,
    errors.BadSetting: 2,
    errors.InvalidRequest: 2,
    errors.CannotConnect: 3,
    errors.NotFound: 4,
    errors.ParentGone: 4,
    errors.Conflict: 5,
    errors.Unauthorised: 6,
}
"""The exit code of each kind of error; 1 for the others."""

app = typer.Typer(
    name="creditgrid",
    help="Grids of credit-assignment experiments: planned into tasks, run on Ray, stored once, queried with SQL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
# All options of serve, --help too, are the service's.
_PASS_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(context_settings=_PASS_OPTIONS, add_help_option=False)(local.serve)
for command in (
    local.run,
    local.plan,
    sweeps.submit,
    sweeps.ls,
    sweeps.show,
    sweeps.watch,
    logs.logs,
    control.pause,
    control.resume,
    control.extend,
    control.cancel,
    control.retry,
    tasks.run_task,
    units.new,
    units.check,
    reproduce.reproduce,
    data.sql,
    data.export,
    data.curves,
    data.plot,
    data.artifact,
    data.code,
    data.import_checkpoint,
    gc.gc,
    data.experiments,
    people.audit,
):
    app.command()(command)
app.add_typer(people.token, name="token")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without η or — gets a question mark, not a traceback
            stream.reconfigure(errors="replace")
    try:
        app(args=arguments, prog_name="creditgrid")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except CreditGridError as error:
        _print_error(_paragraph(error))
        return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
    except OSError as error:
        if not error.filename:
            return _unexpected()
        _print_error(f"{error.filename}: {error.strerror}")
        return 2
    except Exception:
        return _unexpected()
    return 0


def _paragraph(error: CreditGridError) -> str:
    if isinstance(error, SpecError):
        return "\n  ".join(
            f"{fault.pointer}: {fault.detail}" if fault.pointer else fault.detail for fault in error.faults
        )
    if isinstance(error, errors.Unauthorised) and not isinstance(error, errors.Forbidden):
        return f"{error}. Give the service's token with --token or $CREDITGRID_TOKEN."
    return str(error)


def _unexpected() -> int:
    traceback.print_exc()
    _print_error("this is a bug in creditgrid, or a problem of this machine; the traceback above shows where")
    return 1


def _print_error(message: str) -> None:
    sys.stderr.write(f"error: {message}\n")

"""Every error that the client raises on purpose; all are CreditGridErrors, whose messages are for a person.

ClientError
├── BadSetting          a URL, token or option that cannot be used (also a ValueError)
├── CannotConnect       no service answers at the URL
├── UnexpectedAnswer    the answer is not one of a CreditGrid service
├── DamagedAnswer       the received data is not what was stored: its checksum differs
├── ApiError            the service refused the request; carries the RFC 9457 problem
│   ├── InvalidRequest      400, 413, 415, 422: a bad spec, query or parameter
│   ├── Unauthorised        401: no token, or a wrong one
│   │   └── Forbidden           403: the token does not allow the request
│   ├── NotFound            404
│   └── Conflict            409: the request does not fit the current state
├── SweepFailed         the sweep that was waited for failed
├── WaitTimeout         the sweep that was waited for did not finish in time (also a TimeoutError)
├── ParentGone          a task cannot be computed here: an artifact that it needs is not available
├── TaskRefused         this machine's installation cannot compute the task
├── LocalServiceFailed  the service that was started on this machine does not run
└── PackageMissing      an optional package is not installed (also an ImportError)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from creditgrid.core.errors import CreditGridError

if TYPE_CHECKING:  # the command line's help needs no wire models
    from creditgrid.core.wire import FailureView, Problem, SweepView


class ClientError(CreditGridError):
    """Base of the client's errors."""


class BadSetting(ClientError, ValueError):
    """A URL, token or option that cannot be used."""


class CannotConnect(ClientError):
    """No service answers at the URL."""


class UnexpectedAnswer(ClientError):
    """The answer is not one of a CreditGrid service."""


class DamagedAnswer(ClientError):
    """The received data is not what was stored: its checksum differs from the one recorded when it was written."""


class ApiError(ClientError):
    """The service refused the request; ``tries`` is how often the request was sent."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.tries = problem, 1
        faults = [f"{fault.pointer or '/'}: {fault.detail}" for fault in problem.errors]
        head = problem.detail or problem.title
        if faults and faults[0] in head:  # the service also joins the faults into one line; a list is easier to read
            head = head[: head.index(faults[0])].rstrip(": ")
        super().__init__("\n  ".join([head, *faults]))


class InvalidRequest(ApiError):
    """A bad spec, query or parameter; ``problem.errors`` points at each fault."""


class Unauthorised(ApiError):
    """There was no token, or the service does not accept it."""


class Forbidden(Unauthorised):
    """The role or the limits of the token do not allow the request, or the sweep is another person's."""


class NotFound(ApiError):
    """No such sweep, artifact or experiment."""


class Conflict(ApiError):
    """The request does not fit the current state."""


_BY_STATUS: dict[int, type[ApiError]] = {
    **dict.fromkeys((400, 413, 415, 422), InvalidRequest),
    401: Unauthorised,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
}


def api_error(problem: Problem) -> ApiError:
    """The error for a problem, by its status."""
    return _BY_STATUS.get(problem.status, ApiError)(problem)


class SweepFailed(ClientError):
    """The sweep that was waited for failed; ``failures`` are grouped by cause."""

    def __init__(self, view: SweepView, failures: Sequence[FailureView]) -> None:
        self.view, self.failures = view, failures
        counts = ", ".join(f"{n} {state}" for state, n in view.counts.items() if n)
        causes = "".join(f"\n  {f.kind}: {f.cause} ({f.count} failed, {f.skipped} skipped)" for f in failures)
        super().__init__(f"sweep {view.id} ({view.name}) failed: of {view.cells} cells {counts}{causes}")


class WaitTimeout(ClientError, TimeoutError):
    """The sweep that was waited for did not finish in time; it continues."""


class ParentGone(ClientError):
    """A task cannot be computed here: the service does not have an artifact that it needs."""


class TaskRefused(ClientError):
    """This machine's installation cannot compute the task."""


class LocalServiceFailed(ClientError):
    """The service that was started on this machine does not run."""


class PackageMissing(ClientError, ImportError):
    """An optional package is not installed."""

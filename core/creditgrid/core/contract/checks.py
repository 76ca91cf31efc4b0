"""Checks: small functions with a name, each of which yields what is wrong with a subject, and why that matters."""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from creditgrid.core.contract.limits import Overtime
from creditgrid.core.units.brought import is_brought, shown
from creditgrid.core.units.source import Place, place_of, place_of_error

MOST = 3
"""Problems that one check reports; the first ones say it."""
LONGEST = 1000
"""Characters of a problem: it may quote what a unit raised."""


class Violation(Exception):
    """A unit did something that makes further questions of a check meaningless; the text says what is wrong."""


class Inapplicable(Exception):
    """A check does not concern this unit, or cannot be done here; the text says why."""


class Finding(NamedTuple):
    """What is wrong with a unit, why it matters, and where in its author's files that is known."""

    unit: str
    group: str
    check: str
    problem: str
    why: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = "" if self.file is None else f"{self.file}:{self.line}: "
        return f"{where}{self.unit}: {self.problem}. {self.why}"


class Result(NamedTuple):
    """The outcome of one check of one unit; without findings it has passed. ``skipped`` says why it was
    not done."""

    unit: str
    group: str
    check: str
    seconds: float
    findings: Sequence[Finding] = ()
    skipped: str | None = None


class Subject(Protocol):
    """What checks look at: a unit, or an experiment."""

    name: str
    group: str
    written: type
    """The class whose source may be known."""


S = TypeVar("S", bound=Subject)
Run: TypeAlias = Callable[[S], Iterable[str]]


@dataclass(frozen=True)
class Check(Generic[S]):
    """One check. ``of`` names the part of the unit that is blamed. Where a ``basic`` one fails, later ones are not
    done: they would only report the same. ``quick`` ones are also done when code is sent with a sweep."""

    name: str
    why: str
    of: str | None
    quick: bool
    basic: bool
    run: Run[S]


class Checks(list[Check[S]], Generic[S]):
    """The checks of a group, in order."""

    def add(
        self, name: str, *, why: str, of: str | None = None, quick: bool = False, basic: bool = False
    ) -> Callable[[Run[S]], Run[S]]:
        """Add the decorated function, which yields what is wrong."""

        def decorate(run: Run[S]) -> Run[S]:
            self.append(Check(name, why, of, quick or basic, basic, run))
            return run

        return decorate


def results(
    subject: S, checks: Iterable[Check[S]], *, quick: bool, starting: Callable[[str], None] = lambda _: None
) -> Iterator[Result]:
    """Check a subject; ``starting`` is called with the name of each check before it is done."""
    broken: str | None = None
    for check in checks:
        if quick and not check.quick:
            continue
        if broken is not None:
            yield Result(subject.name, subject.group, check.name, 0.0, skipped=f"because of: {broken}")
            continue
        starting(check.name)
        started = time.perf_counter()
        try:
            findings = list(_findings(subject, check))
        except Inapplicable as reason:
            yield Result(subject.name, subject.group, check.name, 0.0, skipped=str(reason))
            continue
        yield Result(subject.name, subject.group, check.name, time.perf_counter() - started, findings)
        if findings and check.basic:
            broken = check.name


def _findings(subject: S, check: Check[S]) -> Iterator[Finding]:
    place = place_in(subject, check.of)
    problems: list[str] = []
    try:
        for problem in itertools.islice(check.run(subject), MOST):
            problems.append(problem)
    except Inapplicable:
        raise
    except Violation as violation:
        problems.append(str(violation))
    except (Exception, SystemExit, Overtime) as error:  # the unit's code may raise anything
        part = f"{check.of}()" if check.of else "it"
        raised = f"{part} raised {type(error).__name__}: {error}".rstrip(": ")
        if isinstance(error, Overtime):
            raised = f"{part} {error}"
        where = place_of_error(error, *_own_files(error, place)) or place
        yield _finding(subject, check, raised, where)
    for problem in problems:
        yield _finding(subject, check, problem, place)


def _own_files(error: BaseException, place: Place | None) -> Iterator[str]:
    """The author's files that an error has passed through: the unit's, and others of the code that it belongs to."""
    if place is not None:
        yield place.file
    yield from (frame.filename for frame in traceback.extract_tb(error.__traceback__) if is_brought(frame.filename))


def _finding(subject: Subject, check: Check[Any], problem: str, place: Place | None) -> Finding:
    file, line = (None, None) if place is None else (shown(place.file), place.line)
    return Finding(subject.name, subject.group, check.name, problem[:LONGEST], check.why, file, line)


def place_in(subject: Subject, part: str | None) -> Place | None:
    """Where the part of a unit is written, or else the unit. A decorated function is one part."""
    whole = place_of(subject.written)
    if part is None or "__wrapped__" in vars(subject.written):
        return whole
    own = getattr(subject.written, part, None)
    found = place_of(own) if callable(own) else None
    return found if found is not None and whole is not None and found.file == whole.file else whole

"""What was measured: seconds and statuses by route, and what the service held meanwhile."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.service_process import Usage

Shares = (0.5, 0.9, 0.99, 1.0)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))] if ordered else 0.0


@dataclass
class Record:
    """Seconds and statuses by route. ``seconds``: how long was measured."""

    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    problems: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def answer(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.times[route].append(seconds)
        self.statuses[route][str(status)] += 1

    def no_answer(self, route: str, why: str) -> None:
        """Count a request that was not answered."""
        self.statuses[route]["no answer"] += 1
        self.problems[f"{route}: {why[:150]}"] += 1

    def all_times(self) -> list[float]:
        """The seconds of all answers."""
        return [seconds for times in self.times.values() for seconds in times]

    def errors(self) -> dict[str, int]:
        """How many answers had a status of 500 or more, or did not come, by status; busy answers are 503."""
        found: Counter[str] = Counter()
        for statuses in self.statuses.values():
            for status, count in statuses.items():
                if status == "no answer" or status >= "500":
                    found[status] += count
        return dict(found)


@dataclass
class Holdings:
    """What the service held: at the start of something, at most meanwhile, and at its end."""

    start: Usage
    samples: list[Usage] = field(default_factory=list)

    def most(self, name: str) -> float:
        """The largest value of a field."""
        return max(float(getattr(usage, name)) for usage in [self.start, *self.samples])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_route(record: Record) -> str:
    """The routes as a Markdown table: rates, percentiles in ms, and statuses."""
    rows = []
    for route in sorted(record.statuses):
        times = record.times.get(route, [])
        statuses = record.statuses[route]
        rows.append(
            [
                route,
                f"{statuses.total():,}",
                f"{statuses.total() / max(record.seconds, 1e-9):,.1f}",
                *(f"{1000 * quantile(times, share):,.1f}" for share in Shares),
                ", ".join(f"{status} × {count:,}" for status, count in sorted(statuses.items())),
            ]
        )
    return table(["request", "n", "/s", "p50, ms", "p90", "p99", "max", "statuses"], rows)

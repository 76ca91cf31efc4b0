"""How long a sweep will take from now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from creditgrid.core.wire import Activity


def time_left(
    open_tasks: Mapping[str, int],
    running: Mapping[int, tuple[Activity, float]],
    needs: Mapping[int, Mapping[str, int]],
    means: Mapping[str, float],
    cpus: float,
) -> float | None:
    """Seconds left: of running calls by their progress, of other open tasks by the mean of their kind.

    Args:
        open_tasks: open tasks of the sweep by kind.
        running: running calls by id, with the seconds that each has run.
        needs: by running call and kind, how many open tasks of the sweep it computes.
        means: seconds of a task by kind.
        cpus: over which the work is divided.

    Returns:
        None while a kind has open tasks without progress and no mean.
    """
    left = Counter(open_tasks)
    total = 0.0
    for call, needed in needs.items():
        activity, seconds = running[call]
        if activity.done:
            total += seconds * (activity.total - activity.done) / activity.done
            left.subtract(needed)
        else:
            total -= min(seconds, means.get(activity.kind, 0.0) * sum(needed.values()))
    for kind, n in left.items():
        if n > 0 and kind not in means:
            return None
        total += n * means.get(kind, 0.0)
    return max(total, 0.0) / cpus

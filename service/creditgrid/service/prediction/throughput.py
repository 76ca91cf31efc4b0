"""Throughput: how long calls of each kind take for their work, learned from the last ones.

A call takes a·launches + b·flops + c·elements seconds. A calibration of the machine gives a, b and c before anything
ran. The last calls of a kind then move them, each in the logarithm and against a prior: all three together easily, and
their ratios less, so that one small run, which launches bind, says little about a large one, which products bind. Calls
count by their age, and those far from the rest count less. A kind without a cost model has one unit, of which only
its own calls say how long it takes.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import sqlalchemy as sa

from creditgrid.core.experiments.registry import registry
from creditgrid.core.work import Work
from creditgrid.service.ledger.past_calls import NOTHING, PastCall, newest_call, read_calls
from creditgrid.service.prediction.calibration import Calibration

USUAL = Calibration(6e-6, 1.2e-11, 1.2e-10)
"""A CPU core of recent years. Only the ratios count, and only where calls were seen and no calibration was."""
CALL_S = 0.004
"""What a call takes besides its work: reading its tasks, and noting its end."""
TOGETHER, APART = 1.5, 0.4
"""Standard deviations of the prior: of the logarithm of all three prices together, and of each alone."""
NOISE = 0.15
"""Standard deviation of the logarithm of a call's time; those beyond twice of it count less."""
HALF_LIFE = 12
"""Calls after which one counts half."""
STEPS = 12


class Rates(NamedTuple):
    """Seconds for each unit of work of one kind."""

    launch_s: float
    flop_s: float
    element_s: float
    call_s: float = CALL_S

    def seconds(self, work: Work, calls: int = 1) -> float:
        """What calls with this work in all take, one after the other."""
        of_work = work.launches * self.launch_s + work.flops * self.flop_s + work.elements * self.element_s
        return of_work + calls * self.call_s


class Throughput:
    """May be used from any thread. It knows the past calls of the last ``refresh``.

    Args:
        calibration: how fast this machine is; with True, its GPU. None while that is unknown.
    """

    def __init__(self, calibration: Callable[[bool], Calibration | None]) -> None:
        self._calibration = calibration
        self._lock = threading.Lock()
        self._seen: object = NOTHING
        self._calls: dict[tuple[str, bool], list[PastCall]] = {}
        self._rates: dict[tuple[str, bool, Calibration | None], Rates | None] = {}

    def refresh(self, connection: sa.Connection) -> None:
        """Read calls that have ended since."""
        seen = newest_call(connection)
        with self._lock:
            if seen == self._seen:
                return
            found: dict[tuple[str, bool], list[PastCall]] = defaultdict(list)
            for call in read_calls(connection):
                found[call.kind, call.device.startswith("cuda")].append(call)
            self._seen, self._calls, self._rates = seen, found, {}

    def rates(self, kind: str, gpu: bool = False) -> Rates | None:
        """The rates of a kind, on GPUs or on CPUs; None if nothing is known."""
        prior = self._calibration(gpu)
        asked = kind, gpu, prior
        with self._lock:
            if asked not in self._rates:
                self._rates[asked] = self._learn(kind, gpu, prior)
            return self._rates[asked]

    def artifact_bytes(self, kind: str) -> float | None:
        """The usual size of an artifact of a kind, from the last calls; None if none was made."""
        with self._lock:
            calls = [*self._of(kind, False), *self._of(kind, True)]
        found = [call.bytes / call.artifacts for call in calls if call.artifacts]
        return statistics.median(found) if found else None

    def _of(self, kind: str, gpu: bool) -> Sequence[PastCall]:
        return self._calls.get((kind, gpu), ())

    def _learn(self, kind: str, gpu: bool, prior: Calibration | None) -> Rates | None:
        known = registry().kinds.get(kind)
        calls = [call for call in self._of(kind, gpu) if call.work is not None and call.seconds > 0]
        if known is None or known.cost is None:
            return alike(calls)
        if not calls and prior is None:
            return None
        return fitted(calls, prior or USUAL)


def alike(calls: Sequence[PastCall]) -> Rates | None:
    """The rate of a kind without a cost model: the median over its calls, the newest of which count most."""
    found = sorted(
        (call.seconds / call.work.launches, weight)
        for call, weight in zip(calls, _weights(len(calls)), strict=True)
        if call.work is not None and call.work.launches > 0
    )
    half, total = sum(weight for _, weight in found) / 2, 0.0
    for rate, weight in found:
        total += weight
        if total >= half:
            return Rates(rate, 0.0, 0.0, 0.0)
    return None


def fitted(calls: Sequence[PastCall], prior: Calibration) -> Rates:
    """The most likely rates, given calls (the oldest first) and what is known without them."""
    if not calls:
        return Rates(*prior)
    work = np.array([call.work or Work() for call in calls]) * np.array(
        prior
    )  # seconds of each component, by the prior
    took = np.log(np.maximum([call.seconds for call in calls], CALL_S))
    weights = np.array(_weights(len(calls)))
    logs = np.zeros(4)  # of all prices together, then of each
    spread = np.array([TOGETHER, APART, APART, APART])
    for _ in range(STEPS):  # Gauss-Newton, with Huber's weights
        parts = work * np.exp(logs[0] + logs[1:])
        expected = parts.sum(axis=1) + CALL_S
        error = took - np.log(expected)
        slopes = np.column_stack((parts.sum(axis=1), parts)) / expected[:, None]
        trusted = weights * np.minimum(1.0, 2 * NOISE / np.maximum(np.abs(error), 1e-9)) / NOISE**2
        hessian = (slopes * trusted[:, None]).T @ slopes + np.diag(spread**-2.0)
        gradient = slopes.T @ (trusted * error) - logs / spread**2
        step = np.linalg.solve(hessian, gradient)
        logs += np.clip(step, -2.0, 2.0)
        if float(np.abs(step).max()) < 1e-6:
            break
    factors = np.exp(np.clip(logs[0] + logs[1:], -30.0, 30.0))
    return Rates(*(float(price * factor) for price, factor in zip(prior, factors, strict=True)))


def _weights(n: int) -> list[float]:
    """Of n calls, the oldest first."""
    return [math.pow(0.5, (n - 1 - i) / HALF_LIFE) for i in range(n)]

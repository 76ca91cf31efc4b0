"""The published figures, as data: CIFAR-10, L 4, d 256, seed 42, one run of 100 epochs.

Each column of the published tables names the rows to compare with it, and its claim: the order of the methods and their
signs. The third digit is the noise of one seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

DATASET, SEED = "cifar10", 42
TRAIN_EPOCHS = 100
FIT_EPOCHS: Mapping[str, int] = {"vec": 60, "scalar_cb": 100}
"""Epochs of fitting, for the methods that are fitted."""


class Claim(StrEnum):
    """What a column claims, and so what is compared."""

    SIGNS_AND_ORDER = "signs and order"
    STEP_SIZE = "step size"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class PublishedColumn:
    """A column of a published table: one figure per method, None if none was published.

    Our figure is ``column`` of the rows of ``experiment`` with the values ``where``, at the end of training. With
    ``at_best_eta`` it is taken at the step size with the lowest mean ``delta_loss_same`` over the seeds; step sizes at
    which a seed diverged are excluded.
    """

    title: str
    experiment: str
    column: str
    where: Mapping[str, Any]
    figures: Mapping[str, float | None]
    at_best_eta: bool = False
    claim: Claim = Claim.SIGNS_AND_ORDER


def _by_method(
    dfa: float | None, scalar_cb: float | None, vec: float | None, oracle_bp: float | None
) -> dict[str, float | None]:
    return {"dfa": dfa, "scalar_cb": scalar_cb, "vec": vec, "oracle_bp": oracle_bp}


def _line_search(title: str, column: str, norm_mode: str, figures: Mapping[str, float | None]) -> PublishedColumn:
    claim = Claim.STEP_SIZE if column == "eta" else Claim.SIGNS_AND_ORDER
    where = {"update_range": "all", "norm_mode": norm_mode}
    return PublishedColumn(title, "linesearch", column, where, figures, at_best_eta=True, claim=claim)


def _five_steps(title: str, rule: str, kappa: float | None, figures: Mapping[str, float | None]) -> PublishedColumn:
    return PublishedColumn(title, "exploitability", "delta_loss", {"rule": rule, "kappa": kappa}, figures)


# gamma and rho do not depend on the rule, so the rows of any rule have them.
_ONE_RULE = {"rule": "inner_product", "kappa": None}

PUBLISHED: tuple[PublishedColumn, ...] = (
    _line_search("norm: best eta", "eta", "norm", _by_method(1e-2, 3e-3, 3e-3, 1e-2)),
    _line_search("norm: dL_same", "delta_loss_same", "norm", _by_method(-0.003, -0.025, -0.135, -0.406)),
    _line_search("norm: dL_held", "delta_loss_held", "norm", _by_method(0.004, 0.027, 0.045, 0.094)),
    _line_search("raw: dL_same", "delta_loss_same", "raw", _by_method(None, None, -0.005, -0.003)),
    PublishedColumn("gamma", "exploitability", "gamma", _ONE_RULE, _by_method(0.009, 0.122, 0.378, 1.000)),
    PublishedColumn("rho", "exploitability", "rho", _ONE_RULE, _by_method(-0.023, 0.090, 0.411, 0.998)),
    _five_steps("inner_product: dL", "inner_product", None, _by_method(-0.0001, 0.042, 0.057, 0.011)),
    _five_steps("shift 0.1: dL", "target_shift", 0.1, _by_method(-0.0003, None, 0.002, 0.0002)),
    _five_steps("shift 0.3: dL", "target_shift", 0.3, _by_method(0.0004, None, 0.009, 0.001)),
    _five_steps("shift 1.0: dL", "target_shift", 1.0, _by_method(0.001, None, 0.048, 0.005)),
    # One row per layer; the means over the layers are the same in all of them.
    PublishedColumn("gamma", "credit_recovery", "gamma_mean", {"layer": 0}, _by_method(0.01, 0.12, 0.38, 1.00)),
    PublishedColumn("rho", "credit_recovery", "rho_mean", {"layer": 0}, _by_method(-0.023, 0.090, 0.411, 0.998)),
    # A property of the checkpoint, for all methods; the oracle's rows need no fit.
    PublishedColumn("test accuracy (BP)", "snapshot_time", "test_accuracy", {}, {"oracle_bp": 0.619}, claim=Claim.NONE),
)

EXPERIMENTS: tuple[str, ...] = tuple(dict.fromkeys(column.experiment for column in PUBLISHED))
"""The experiments with published figures, in the order in which they are shown."""

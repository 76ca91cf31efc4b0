"""Credit sources and fits from estimators that a test has, and what the slow reference says of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import slow_reference as slow
import torch
from torch import Tensor

from creditgrid.core.science.credit_sources import CreditSource
from creditgrid.core.science.data import ImageData
from creditgrid.core.science.estimators import EstimatorNet
from creditgrid.core.science.fitting import FitEpoch, Fitting
from creditgrid.core.science.forward import Forward
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.units.known import installed
from creditgrid.core.units.method import Method
from creditgrid.core.units.rule import Rule

INNER, COSINE = installed().rule("inner_product")(), installed().rule("cosine")()
SHIFT = installed().rule("target_shift").of({"kappa": 0.3})
RULES: tuple[Rule, ...] = (INNER, SHIFT, COSINE)


def kappa_of(rule: Rule) -> float | None:
    """The shift of target_shift."""
    kappa: float | None = getattr(rule, "kappa", None)
    return kappa


def source(
    method: str, *, feedback: Tensor | None = None, estimator: EstimatorNet | None = None, **parameters: Any
) -> CreditSource:
    """A shipped method with its feedback (L, d, C) or its estimator."""
    setting = installed().method(method).model_validate(parameters)
    if feedback is not None:
        return CreditSource(setting, {f"B.{layer}": matrix for layer, matrix in enumerate(feedback)})
    return CreditSource(setting, {} if estimator is None else estimator.state_dict())


def slow_credit(of: CreditSource, network: slow.SlowNetwork, x: Tensor, label: int, layer: int) -> Tensor:
    """a_layer of one sample; for oracle_bp at the scale of one sample's own gradient."""
    options: dict[str, Any] = {"s_source": getattr(of.method, "s_source", "e_T")}
    if of.method.uses_feedback:
        options["feedback"] = torch.stack(list(of.tensors.values()))
    elif of.tensors:
        options["estimator"] = {name: t.detach().double().clone().requires_grad_() for name, t in of.tensors.items()}
    return slow.credit(of.method.name, network, x, label, layer, **options)


def forward_of(network: ResidualMLP, x: Tensor, y: Tensor) -> Forward:
    """What a network computes for a batch."""
    with torch.no_grad():
        logits, hiddens = network(x, return_hidden=True)
    return Forward(network, hiddens, logits, y)


def fit_into(
    estimator: EstimatorNet, method: Method, network: ResidualMLP, data: ImageData, *, batch_size: int, seed: int
) -> Iterator[FitEpoch]:
    """The fit of a method that starts from this estimator, in place."""
    run = method.fit(Fitting(network, data, batch_size, seed))
    assert isinstance(run, Iterator)
    with patch("creditgrid.core.science.estimators.EstimatorNet", lambda *_, **__: estimator):
        first = next(run)
    yield first
    yield from run

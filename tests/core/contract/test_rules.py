"""The contract of update rules: those that ship pass, and each check catches a rule that breaks it."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor

from creditgrid.core.contract.suite import check_unit
from creditgrid.core.units.decorators import rule
from creditgrid.core.units.known import installed
from creditgrid.core.units.rule import Rule

kept: list[Tensor] = []


@rule
def clipped(branch: Tensor, credit: Tensor, bound: float = Field(1.0, gt=0, description="Bound.")) -> Tensor:
    """The credit, clipped."""
    return credit.clamp(-bound, bound) / branch.shape[-2]


@rule
def summed(branch: Tensor, credit: Tensor) -> Tensor:
    """A sum over the batch."""
    return credit


@rule
def flat(branch: Tensor, credit: Tensor) -> Tensor:
    """Another shape."""
    return (credit / branch.shape[-2]).flatten()


@rule
def listed(branch: Tensor, credit: Tensor) -> Any:
    """No tensor."""
    return credit.tolist()


@rule
def divided(branch: Tensor, credit: Tensor) -> Tensor:
    """Divides by the branch."""
    return credit / branch / branch.shape[-2]


@rule
def noisy(branch: Tensor, credit: Tensor) -> Tensor:
    """Adds noise."""
    return (credit + torch.randn_like(credit)) / branch.shape[-2]


@rule
def restless(branch: Tensor, credit: Tensor) -> Tensor:
    """Depends on the calls before."""
    kept.append(credit)
    return credit * len(kept) / branch.shape[-2]


@rule
def in_place(branch: Tensor, credit: Tensor) -> Tensor:
    """Works in place."""
    return credit.mul_(1 / branch.shape[-2])


@rule
def mixed(branch: Tensor, credit: Tensor) -> Tensor:
    """Mixes networks side by side."""
    return (credit - credit.flatten(0, -2).mean(0)) / branch.shape[-2]


@rule
def rounded(branch: Tensor, credit: Tensor) -> Tensor:
    """Rounds to few bits."""
    return (credit.half().to(credit) if credit.dtype == torch.float32 else credit) / branch.shape[-2]


@rule(normalises=True)
def unnormalised(branch: Tensor, credit: Tensor) -> Tensor:
    """Says that it normalises."""
    return credit / branch.shape[-2]


class NoParameters(Rule):
    """Declares no description."""

    name: ClassVar = "no_parameters"
    size: int = 1


BROKEN = [
    (summed, "the gradient is that of a mean", "divide by branch.shape"),
    (flat, "the gradient has the branch's shape and type", r"gave \(105,\) float32"),
    (listed, "the gradient has the branch's shape and type", "gave a list"),
    (divided, "the gradient is finite", "for a branch of 0"),
    (noisy, "equal inputs give equal bits", "differ by up to"),
    (noisy, "the global random state is left alone", "global state of torch"),
    (restless, "equal inputs give equal bits", "differ by up to"),
    (in_place, "the inputs do not change", "its argument credit"),
    (mixed, "batched equals one by one", "mix the last two dimensions only"),
    (rounded, "double precision agrees", "single and double"),
    (unnormalised, "a rule that normalises ignores the credit's length", "three times"),
    (NoParameters, "it is declared well", "needs a description"),
]


@pytest.mark.parametrize("unit", [clipped, *installed().of("rules").values()])
def test_a_sound_rule_passes(unit: type[Rule]) -> None:
    assert [finding for result in check_unit(unit, quick=False) for finding in result.findings] == []


@pytest.mark.parametrize(
    ("unit", "check", "problem"), BROKEN, ids=[f"{unit.name}-{check}" for unit, check, _ in BROKEN]
)
def test_a_broken_rule_fails_its_check(unit: type[Rule], check: str, problem: str) -> None:
    findings = [f for result in check_unit(unit, quick=False) for f in result.findings if f.check == check]
    assert any(re.search(problem, finding.problem) for finding in findings), findings
    assert findings[0].file == __file__


def test_every_check_of_rules_can_fail() -> None:
    from creditgrid.core.contract.rules import CHECKS

    on_a_gpu = {"a GPU agrees with the CPU"}
    assert {check.name for check in CHECKS} - on_a_gpu == {check for _, check, _ in BROKEN} - {"it is declared well"}

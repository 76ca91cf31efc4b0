"""The contract of credit methods: a sound one passes, and each check catches a method that breaks it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from creditgrid.core.contract import declaration
from creditgrid.core.contract.checks import Finding, Result
from creditgrid.core.contract.methods import CHECKS
from creditgrid.core.contract.suite import check_unit, check_units
from creditgrid.core.science.fitting import FitEpoch, Fitting
from creditgrid.core.science.forward import Forward
from creditgrid.core.units.known import installed
from creditgrid.core.units.method import Method
from creditgrid.core.work import Work

scales: dict[int, float] = {}


class Linear(Method):
    """A h + B e, fitted by least squares to the gradient at the head."""

    name: ClassVar = "linear"
    side_by_side: ClassVar = True

    ridge: float = Field(1e-3, gt=0, description="Ridge of the normal equations.")
    source: Literal["error", "none"] = Field("error", description="Whether e is used.")

    def fit(self, fitting: Fitting) -> dict[str, Tensor]:
        pairs = [(self._features(f.hiddens[-1], f.error), f.terminal_gradient) for f in fitting.batches(1)]
        features, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        square = features.mT @ features + self.ridge * torch.eye(features.shape[-1])
        return {"weight": torch.linalg.solve(square, features.mT @ targets)}

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        return self._features(forward.states, forward.error.expand(*forward.states.shape[:-1], -1)) @ fitted["weight"]

    def _features(self, h: Tensor, error: Tensor) -> Tensor:
        return torch.cat((h, error), -1) if self.source == "error" else h


class Backprop(Method):
    """The gradient, by the network's own layers."""

    name: ClassVar = "backprop"
    exact: ClassVar = True

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        gradient, found = forward.terminal_gradient, []
        for layer in reversed(range(forward.first, forward.network.num_blocks)):
            with torch.enable_grad():
                h = forward.hiddens[layer].detach().requires_grad_()
                (below,) = torch.autograd.grad(forward.network.branch(layer, h), h, gradient)
            gradient = gradient + below if forward.network.residual_add else below
            found.insert(0, gradient)
        return torch.stack(found)


class Last(Linear):
    """Credits of all layers, whichever are wanted."""

    name: ClassVar = "last"

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        return super().credit(Forward(forward.network, forward.hiddens, forward.logits, forward.y), fitted)


class Continued(Linear):
    """Two epochs, with a state."""

    name: ClassVar = "continued"

    def fit(self, fitting: Fitting) -> Iterator[FitEpoch]:  # type: ignore[override]
        weight = torch.zeros(()) if fitting.resume is None else fitting.resume["weight"]
        first = 1 if fitting.resume is None else int(fitting.resume["epoch"]) + 1
        for epoch in range(first, 3):
            weight = weight + epoch * Linear.fit(self, fitting)["weight"]
            yield FitEpoch(epoch, 1.0, state=partial(self.kept, weight, epoch))
        return {"weight": weight}  # type: ignore[return-value]

    def kept(self, weight: Tensor, epoch: int) -> dict[str, Tensor]:
        return {"weight": weight, "epoch": torch.tensor(epoch)}


SOUND = [Linear, Backprop, Last, Continued, *installed().of("methods").values()]


def of(unit: type[Method], quick: bool = False) -> dict[str, Result]:
    return {result.check: result for result in check_unit(unit, quick=quick)}


def found(unit: type[Method]) -> list[Finding]:
    return [finding for result in check_unit(unit, quick=False) for finding in result.findings]


@pytest.mark.parametrize("unit", SOUND)
def test_a_sound_method_passes(unit: type[Method]) -> None:
    assert found(unit) == []
    assert len(of(unit, quick=True)) < len(of(unit))
    assert check_units([unit]) == []


class Undescribed(Linear):
    """A parameter without a description."""

    name: ClassVar = "undescribed"
    size: int = 1


class Untitled(Method):
    name: ClassVar = "untitled"


class OutOfBounds(Linear):
    """A default that is not valid."""

    name: ClassVar = "out_of_bounds"
    size: int = Field(0, ge=1, description="A size.")


class NoColumn(Linear):
    """A parameter that cannot be a column."""

    name: ClassVar = "no_column"
    sizes: list[int] = Field([1], description="Sizes.")


class Doubling(Linear):
    """A parameter that changes each time it is read."""

    name: ClassVar = "doubling"
    size: Annotated[float, BeforeValidator(lambda value: value * 2)] = Field(1.0, description="A size.")


class Shape(Linear):
    """Credits without the layers."""

    name: ClassVar = "shape"

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        return super().credit(forward, fitted)[0]


class Type(Linear):
    """Credits in double precision."""

    name: ClassVar = "type"

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        return super().credit(forward, fitted).double()


class Nothing(Linear):
    """Credits that are no tensor."""

    name: ClassVar = "nothing"

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        return None  # type: ignore[return-value]


class NotANumber(Linear):
    """Credits that are not finite."""

    name: ClassVar = "not_a_number"

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        return super().credit(forward, fitted) / 0


class Unfinite(Linear):
    """A fit that is not finite."""

    name: ClassVar = "unfinite"

    def fit(self, fitting: Fitting) -> dict[str, Tensor]:
        return {"weight": super().fit(fitting)["weight"] * float("nan")}


class Untensor(Linear):
    """A fit that gives no tensors."""

    name: ClassVar = "untensor"

    def fit(self, fitting: Fitting) -> dict[str, Tensor]:
        return {"weight": 1.0}  # type: ignore[dict-item]


class Unseeded(Linear):
    """Starts from fresh entropy."""

    name: ClassVar = "unseeded"

    def fit(self, fitting: Fitting) -> dict[str, Tensor]:
        weight = super().fit(fitting)["weight"]
        return {"weight": weight + torch.from_numpy(np.random.default_rng().normal(size=weight.shape)).float()}


class Restless(Linear):
    """Each call gives another credit."""

    name: ClassVar = "restless"

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        return super().credit(forward, fitted) * random.SystemRandom().random()


class Global(Linear):
    """Draws from the global states."""

    name: ClassVar = "global_state"

    def fit(self, fitting: Fitting) -> dict[str, Tensor]:
        np.random.rand()
        return super().fit(fitting)

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        torch.rand(1)
        return super().credit(forward, fitted)


class Trainer(Linear):
    """Trains the network."""

    name: ClassVar = "trainer"

    def fit(self, fitting: Fitting) -> dict[str, Tensor]:
        next(fitting.network.parameters()).add_(1e-3)
        return super().fit(fitting)


class Backward(Linear):
    """Leaves gradients."""

    name: ClassVar = "backward"

    def fit(self, fitting: Fitting) -> dict[str, Tensor]:
        fitting.network.requires_grad_()
        return super().fit(fitting)


class InPlace(Linear):
    """Changes the hidden states."""

    name: ClassVar = "in_place"

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        found = super().credit(forward, fitted)
        forward.hiddens[0].mul_(2)
        return found


class FromZero(Linear):
    """Counts layers from 0."""

    name: ClassVar = "from_zero"

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        found = super().credit(forward, fitted)
        return found * torch.arange(1.0, len(found) + 1).to(found).view(-1, *[1] * (found.dim() - 1))


class Mixed(Linear):
    """Mixes the networks side by side."""

    name: ClassVar = "mixed"

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        found = super().credit(forward, fitted)
        return found - (found.mean(1, keepdim=True) if found.dim() == 4 else 0)


class Single(Linear):
    """Rounds to eight bits."""

    name: ClassVar = "single"

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        found = super().credit(forward, fitted)
        return found if found.dtype == torch.float64 else (found * 10).round() / 10


class Precise(Linear):
    """Has no double precision."""

    name: ClassVar = "precise"

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        return super().credit(forward, {"weight": fitted["weight"].float()})


class Forgetful(Linear):
    """Keeps a part of the fit besides its tensors."""

    name: ClassVar = "forgetful"

    def load(self, tensors: Any) -> Any:
        return {"weight": tensors["weight"] * scales.get(tensors["weight"].data_ptr(), 1.0)}

    def fit(self, fitting: Fitting) -> dict[str, Tensor]:
        weight = super().fit(fitting)["weight"]
        scales[weight.data_ptr()] = 2.0
        return {"weight": weight}


class Size(Linear):
    """Says a wrong size."""

    name: ClassVar = "size"

    def fitted_bytes(self, shape: Any) -> int:
        return 1_000_000


class Unordered(Linear):
    """Epochs in a wrong order, and a loss that is not a number."""

    name: ClassVar = "unordered"

    def fit(self, fitting: Fitting) -> Iterator[FitEpoch]:  # type: ignore[override]
        yield FitEpoch(1, 1.0)
        yield FitEpoch(1, float("nan"))
        return Linear.fit(self, fitting)  # type: ignore[return-value]


class Restarted(Continued):
    """Forgets the weight of its state."""

    name: ClassVar = "restarted"

    def kept(self, weight: Tensor, epoch: int) -> dict[str, Tensor]:
        return {"weight": torch.zeros(()), "epoch": torch.tensor(epoch)}


class Inexact(Linear):
    """Says that it is the gradient."""

    name: ClassVar = "inexact"
    exact: ClassVar = True


class Residual(Linear):
    """Needs the residual path."""

    name: ClassVar = "residual"

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        found = super().credit(forward, fitted)
        return found if forward.network.residual_add else found / 0


class Choosy(Linear):
    """Works with one of two values."""

    name: ClassVar = "choosy"

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        found = super().credit(forward, fitted)
        return found / 0 if self.source == "none" else found


class Priceless(Linear):
    """Costs that are no work."""

    name: ClassVar = "priceless"

    def fit_cost(self, shape: Any, batch: int) -> Work:
        return Work(-1.0)


BROKEN = [
    (Undescribed, "it is declared well", "needs a description"),
    (Untitled, "it is declared well", "no docstring"),
    (OutOfBounds, "defaults are valid", "the default 0 of size"),
    (NoColumn, "parameters can be columns", "sizes: a parameter of type"),
    (Doubling, "parameters round-trip", "gives another setting"),
    (Shape, "credits have the shape and type of the hidden states", r"\(6, 8\) float32, and .* \(3, 6, 8\) float32"),
    (Type, "credits have the shape and type of the hidden states", "torch.float64"),
    (Nothing, "credits have the shape and type of the hidden states", "gave a NoneType"),
    (NotANumber, "credits are finite", "layer 0 is not finite"),
    (Unfinite, "the fit gives finite tensors by name", "'weight' .* is not finite"),
    (Untensor, "the fit gives finite tensors by name", "gave a float under 'weight'"),
    (Unseeded, "equal seeds give equal bits", "two fits with one seed differ in 'weight'"),
    (Restless, "equal seeds give equal bits", "differ by up to"),
    (Global, "the global random state is left alone", r"fit\(\) changes the global state of numpy.random"),
    (Trainer, "the network does not change", "changes the network's parameter embed.weight"),
    (Backward, "the network does not change", "leaves a gradient"),
    (InPlace, "the network does not change", "changes the hidden states"),
    (FromZero, "the last layers alone are the same", "count from Forward.first"),
    (Mixed, "batched equals one by one", "leave side_by_side out"),
    (Single, "double precision agrees", "in single and in double"),
    (Precise, "double precision agrees", "raised RuntimeError"),
    (Forgetful, "fitted tensors survive a file", "through a file"),
    (Size, "fitted tensors survive a file", "fitted_bytes"),
    (Unordered, "epochs of the fit come in order", r"\[1, 1\], and must rise"),
    (Restarted, "an interrupted fit continues to the same bits", "after epoch 1 ends with another 'weight'"),
    (Inexact, "an exact credit is the gradient", "its cosine"),
    (Residual, "networks without a residual path work too", "residual_add: false"),
    (Choosy, "every value of a choice works", "source='none'"),
    (Priceless, "costs are work", "fit_cost"),
]


@pytest.mark.parametrize(("unit", "check", "problem"), BROKEN, ids=[unit.name for unit, *_ in BROKEN])
def test_a_broken_method_fails_its_check(unit: type[Method], check: str, problem: str) -> None:
    results = of(unit)
    failed = [name for name, result in results.items() if result.findings]
    assert check in failed
    finding = results[check].findings[0]
    assert any(re.search(problem, each.problem) for each in results[check].findings)
    assert finding.file == __file__
    assert finding.line is not None
    assert finding.why


def test_the_line_of_an_exception_is_named() -> None:
    class Raises(Linear):
        """Raises."""

        name: ClassVar = "raises"

        def credit(self, forward: Forward, fitted: Any) -> Tensor:
            raise KeyError("bias")

    (finding,) = found(Raises)
    line = Raises.credit.__code__.co_firstlineno + 1
    assert (finding.file, finding.line) == (__file__, line)
    assert finding.problem == "credit() raised KeyError: 'bias'"
    assert str(finding).startswith(f"{__file__}:{line}: raises: credit() raised KeyError")


def test_what_follows_a_basic_failure_is_skipped() -> None:
    results = of(NotANumber)
    assert results["equal seeds give equal bits"].skipped == "because of: credits are finite"
    assert sum(len(result.findings) for result in results.values()) == 3


def test_every_check_of_methods_can_fail() -> None:
    on_a_gpu = {"a GPU agrees with the CPU"}
    checks = {check.name for check in (*declaration.CHECKS, *CHECKS)}
    shown = {check for _, check, _ in BROKEN}
    assert checks - shown == on_a_gpu

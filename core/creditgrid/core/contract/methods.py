"""Checks of credit methods."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from creditgrid.core.contract import tiny
from creditgrid.core.contract.checks import Checks, Inapplicable, Violation
from creditgrid.core.contract.random_state import seeded, watched
from creditgrid.core.contract.settings import choices, small
from creditgrid.core.contract.tensors import described, difference, same_bits
from creditgrid.core.science.credit import feedback_matrices
from creditgrid.core.science.fitting import FitEpoch, Fitting
from creditgrid.core.science.forward import Forward
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.science.per_sample import cosine
from creditgrid.core.units.method import Method, is_fitted
from creditgrid.core.work import Work

CLOSE = 1e-4
"""Largest difference, relative to the largest credit, of two ways to compute one thing in single precision."""
PRECISE = 1e-2
"""The same of single and double precision: a fit's own rounding is in it."""
SEED = 7


class FittedMethod:
    """A method, and one fit of it on a small network."""

    group = "methods"

    def __init__(self, written: type[Method], device: torch.device | str = "cpu") -> None:
        self.written, self.name, self.device = written, written.name, torch.device(device)

    @cached_property
    def setting(self) -> Method:
        return small(self.written)

    @cached_property
    def network(self) -> ResidualNetwork:
        return tiny.network(self.device)

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """What its credit needs: the tensors of the fit or the feedback matrices."""
        return self.fitted(self.setting, self.network)

    def fitted(self, setting: Method, network: ResidualNetwork) -> Mapping[str, Tensor]:
        """The tensors that a setting's credit needs on a network.

        Raises:
            Violation: the fit gives something else.
        """
        if self.written.uses_feedback:
            matrices = feedback_matrices(SEED, network.num_blocks, tiny.WIDTH, tiny.CLASSES)
            return {f"B.{layer}": matrix.to(self.device) for layer, matrix in enumerate(matrices)}
        if not is_fitted(self.written):
            return {}
        _, found = finished(setting.fit(self.fitting(network)))
        return found

    def fitting(self, network: ResidualNetwork, resume: Mapping[str, Tensor] | None = None) -> Fitting:
        """What a fit is made on: a small dataset, with one seed."""
        return Fitting(network, tiny.images(self.device), tiny.BATCH, SEED, resume)

    def credits(
        self, forward: Forward, setting: Method | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The credits of a batch.

        Raises:
            Violation: they have another shape, type or device than the hidden states.
        """
        setting = self.setting if setting is None else setting
        fitted = setting.load(self.tensors if tensors is None else tensors)
        found = setting.credit(forward, fitted)
        if not isinstance(found, Tensor):
            raise Violation(f"credit() gave a {type(found).__name__}, and must give a tensor")
        wanted, given = forward.states, found
        if found.dim() > wanted.dim():  # the shape of the hidden states
            found = found.flatten(wanted.dim() - 1)
        if len(found) == len(forward.hiddens) - 1:  # all layers
            found = found[forward.first :]
        if found.shape != wanted.shape:
            raise Violation(
                f"credit() gave {described(given)}, and the hidden states of its layers are {described(wanted)}"
            )
        if found.dtype != wanted.dtype or found.device != wanted.device:
            raise Violation(
                f"credit() gave {found.dtype} on {found.device}, and the hidden states are {wanted.dtype} on "
                f"{wanted.device}"
            )
        return found.detach()


def finished(
    fit: Any, states: dict[int, Mapping[str, Tensor]] | None = None
) -> tuple[list[FitEpoch], Mapping[str, Tensor]]:
    """The epochs and the tensors of a fit; ``states`` gets the state after each epoch that has one.

    Raises:
        Violation: they are not that.
    """
    epochs: list[FitEpoch] = []
    if isinstance(fit, Generator):
        try:
            while True:
                epoch = next(fit)
                if not isinstance(epoch, FitEpoch):
                    raise Violation(f"fit() yielded a {type(epoch).__name__}, and must yield a FitEpoch for each epoch")
                epochs.append(epoch)
                if states is not None and epoch.state is not None:
                    states[epoch.epoch] = {name: tensor.clone() for name, tensor in epoch.state().items()}
        except StopIteration as end:
            fit = end.value
    if not isinstance(fit, Mapping) or not fit:
        raise Violation(f"fit() gave {fit!r:.100}, and must return the fitted tensors by name")
    for name, tensor in fit.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise Violation(f"fit() gave a {type(tensor).__name__} under {name!r:.100}, and must give tensors by name")
    return epochs, {name: tensor.detach() for name, tensor in fit.items()}


CHECKS: Checks[FittedMethod] = Checks()


@CHECKS.add(
    "the fit gives finite tensors by name", why="They are stored and loaded by every measurement.", of="fit", basic=True
)
def fits(subject: FittedMethod) -> Iterator[str]:
    if not is_fitted(subject.written):
        raise Inapplicable("it has no fit")
    for name, tensor in subject.tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            yield f"the fitted tensor {name!r} ({described(tensor)}) is not finite"


@CHECKS.add(
    "credits have the shape and type of the hidden states",
    why="Each credit is multiplied with its hidden state's block.",
    of="credit",
    basic=True,
)
def shapes(subject: FittedMethod) -> Iterator[str]:
    for size, first in ((6, 0), (1, 0), (6, tiny.BLOCKS - 1)):
        subject.credits(tiny.forward(subject.network, size, first))
    yield from ()


@CHECKS.add("credits are finite", why="A row with a number that is not finite is lost.", of="credit", basic=True)
def finite(subject: FittedMethod) -> Iterator[str]:
    found = subject.credits(tiny.forward(subject.network))
    for layer, credit in enumerate(found):
        if not credit.isfinite().all():
            yield f"the credit of layer {layer} is not finite on a network of ordinary size"


@CHECKS.add(
    "equal seeds give equal bits",
    why="A task is computed again after a crash, and its rows must not change.",
    of="fit",
    quick=True,
)
def deterministic(subject: FittedMethod) -> Iterator[str]:
    forward = tiny.forward(subject.network)
    runs = []
    for seed in (1, 2):  # a method that reads a global random state differs
        with seeded(seed):
            tensors = subject.fitted(subject.setting, subject.network)
            runs.append((tensors, subject.credits(forward, tensors=tensors)))
    (first, credits), (second, again) = runs
    for name in first.keys() | second.keys():
        if name not in first or name not in second or not same_bits(first[name], second[name]):
            yield f"two fits with one seed differ in {name!r}: use generators of Fitting.generator(…)"
    if first and not same_bits(credits, again):
        yield f"the credits of two fits with one seed differ by up to {difference(credits, again):.2g} of the largest"
    elif not same_bits(credits, again):
        yield f"two calls of credit() differ by up to {difference(credits, again):.2g} of the largest"


@CHECKS.add(
    "the global random state is left alone",
    why="Other numbers of the call would depend on this method: every random number has a stream of its own.",
    quick=True,
)
def global_state(subject: FittedMethod) -> Iterator[str]:
    for part, run in (
        ("fit()", lambda: subject.fitted(subject.setting, subject.network)),
        ("credit()", lambda: subject.credits(tiny.forward(subject.network))),
    ):
        changed: list[str] = []
        with watched(changed):
            run()
        for library in changed:
            yield f"{part} changes the global state of {library}: draw from Fitting.generator(…)"


@CHECKS.add("the network does not change", why="All methods of a checkpoint are measured on one network.", quick=True)
def frozen(subject: FittedMethod) -> Iterator[str]:
    network = tiny.network(subject.device)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    tensors = subject.fitted(subject.setting, network)
    forward = tiny.forward(network)
    hiddens = [h.clone() for h in forward.hiddens]
    subject.credits(forward, tensors=tensors)
    for name, parameter in network.named_parameters():
        if not same_bits(parameter, before[name]):
            yield f"it changes the network's parameter {name}"
        if parameter.grad is not None or parameter.requires_grad:
            yield f"it leaves a gradient at the network's parameter {name}: use torch.autograd.grad"
    if any(not same_bits(h, was) for h, was in zip(forward.hiddens, hiddens, strict=True)):
        yield "it changes the hidden states that it is given"


@CHECKS.add(
    "the last layers alone are the same",
    why="A step on the last block asks for credits from Forward.first on.",
    of="credit",
)
def last_layers(subject: FittedMethod) -> Iterator[str]:
    whole = subject.credits(tiny.forward(subject.network))
    for first in range(1, tiny.BLOCKS):
        part = subject.credits(tiny.forward(subject.network, first=first))
        if (apart := difference(part, whole[first:])) > CLOSE:
            yield f"with first={first} its credits differ by {apart:.2g} of the largest: count from Forward.first"


@CHECKS.add(
    "batched equals one by one",
    why="Networks side by side are computed together, and each must get its own result.",
    of="credit",
)
def one_by_one(subject: FittedMethod) -> Iterator[str]:
    if not subject.written.side_by_side:
        raise Inapplicable("it is called once for each network")
    networks = [tiny.network(subject.device, seed=seed) for seed in (1, 2, 3)]
    for first in (0, 1):
        together = subject.credits(tiny.side_by_side(networks, first=first))
        for number, network in enumerate(networks):
            alone = subject.credits(tiny.forward(network, first=first))
            if (apart := difference(together[:, number], alone)) > CLOSE:
                yield (
                    f"of 3 networks side by side, number {number} gets credits that differ by {apart:.2g} of the "
                    "largest from its own: leave side_by_side out, or mix no leading dimension"
                )


@CHECKS.add("double precision agrees", why="gamma, rho and nudge are measured in double precision.", of="credit")
def double(subject: FittedMethod) -> Iterator[str]:
    single = subject.credits(tiny.forward(subject.network))
    tensors = {name: t.double() if t.is_floating_point() else t for name, t in subject.tensors.items()}
    precise = subject.credits(tiny.forward(tiny.network(subject.device).double()), tensors=tensors)
    if (apart := difference(single.double(), precise)) > PRECISE:
        yield f"its credits in single and in double precision differ by {apart:.2g} of the largest"


@CHECKS.add(
    "fitted tensors survive a file", why="They are stored as safetensors, and loaded where they are measured.", of="fit"
)
def stored(subject: FittedMethod) -> Iterator[str]:
    if not subject.tensors:
        raise Inapplicable("it has no tensors")
    packed = save({name: tensor.contiguous().cpu() for name, tensor in subject.tensors.items()})
    again = {name: tensor.to(subject.device) for name, tensor in load(packed).items()}
    forward = tiny.forward(subject.network)
    if (apart := difference(subject.credits(forward, tensors=again), subject.credits(forward))) > CLOSE:
        yield f"after a way through a file its tensors give credits that differ by {apart:.2g} of the largest"
    expected = subject.setting.fitted_bytes(tiny.shape(subject.network))
    if expected is not None and not 0.5 <= (expected + 2000) / (len(packed) + 2000) <= 2:
        yield f"fitted_bytes() says {expected:,}, and the file has {len(packed):,} bytes"


@CHECKS.add("epochs of the fit come in order", why="They are the points of its curve.", of="fit")
def epochs(subject: FittedMethod) -> Iterator[str]:
    if not is_fitted(subject.written):
        raise Inapplicable("it has no fit")
    found, _ = finished(subject.setting.fit(subject.fitting(subject.network)))
    numbers = [epoch.epoch for epoch in found]
    if numbers != sorted(set(numbers)):
        yield f"its epochs are {numbers}, and must rise"
    for epoch in found:
        if epoch.loss is not None and not math.isfinite(epoch.loss):
            yield f"the loss of epoch {epoch.epoch} is {epoch.loss}"


@CHECKS.add("an interrupted fit continues to the same bits", why="A worker may die in the middle of it.", of="fit")
def resumes(subject: FittedMethod) -> Iterator[str]:
    if not is_fitted(subject.written):
        raise Inapplicable("it has no fit")
    states: dict[int, Mapping[str, Tensor]] = {}
    _, whole = finished(subject.setting.fit(subject.fitting(subject.network)), states)
    if not states:
        raise Inapplicable("its epochs have no state, so an interrupted fit starts again")
    for epoch, state in states.items():
        _, again = finished(subject.setting.fit(subject.fitting(subject.network, state)))
        for name in whole.keys() | again.keys():
            if name not in whole or name not in again or not same_bits(whole[name], again[name]):
                yield f"a fit that continues after epoch {epoch} ends with another {name!r}"


@CHECKS.add(
    "an exact credit is the gradient", why="exact says that a raw step along it must lower the loss.", of="credit"
)
def exact(subject: FittedMethod) -> Iterator[str]:
    if not subject.written.exact:
        raise Inapplicable("it does not say that it is exact")
    forward = tiny.forward(subject.network)
    found, gradient = subject.credits(forward), tiny.gradients(forward)
    agreement = cosine(found, gradient).min().item()
    if agreement < 0.999:
        yield f"it is exact, and its cosine with the gradient falls to {agreement:.3f}"


@CHECKS.add("networks without a residual path work too", why="residual_add may be false.", of="credit")
def without_residual(subject: FittedMethod) -> Iterator[str]:
    network = tiny.network(subject.device, residual_add=False)
    tensors = subject.fitted(subject.setting, network)
    if not subject.credits(tiny.forward(network), tensors=tensors).isfinite().all():
        yield "its credits are not finite with residual_add: false"


@CHECKS.add("every value of a choice works", why="Each may be on an axis.")
def other_settings(subject: FittedMethod) -> Iterator[str]:
    for setting in choices(subject.written):
        tensors = subject.fitted(setting, subject.network)
        if not subject.credits(tiny.forward(subject.network), setting, tensors).isfinite().all():
            yield f"its credits are not finite with {setting!r}"


@CHECKS.add("costs are work", why="Plans predict their time from it.", of="fit_cost")
def costs(subject: FittedMethod) -> Iterator[str]:
    shape, setting = tiny.shape(subject.network), subject.setting
    for name, cost in (
        ("fit_cost()", setting.fit_cost(shape, tiny.BATCH)),
        ("credit_cost()", setting.credit_cost(shape, 100.0, 3.0)),
    ):
        if cost is not None and not (isinstance(cost, Work) and all(math.isfinite(x) and x >= 0 for x in cost)):
            yield f"{name} gave {cost!r:.100}, and must give a Work of finite numbers from 0, or None"


@CHECKS.add("a GPU agrees with the CPU", why="A cluster may have GPUs.", of="credit")
def on_gpu(subject: FittedMethod) -> Iterator[str]:
    if not torch.cuda.is_available():
        raise Inapplicable("there is no GPU here")
    gpu = FittedMethod(subject.written, "cuda")
    here = subject.credits(tiny.forward(subject.network))
    tensors = {name: tensor.to("cuda") for name, tensor in subject.tensors.items()}
    there = gpu.credits(tiny.forward(gpu.network), tensors=tensors).cpu()
    if (apart := difference(here, there)) > PRECISE:
        yield f"its credits on the GPU differ from those on the CPU by {apart:.2g} of the largest"
    gpu.credits(tiny.forward(gpu.network))  # fitted there

"""Fitting credit methods on a frozen network: Protocols, section 5 (Estimators).

A method's fit gets a `Fitting`: the network, and the augmented training stream as the network sees it. It yields each
finished epoch. `fit_by_adam` is the loop that most fits need: one step a batch on the method's own loss, and a state
after each epoch, from which an interrupted fit continues bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from creditgrid.core.errors import TaskError
from creditgrid.core.science.data import ImageData, training_batches
from creditgrid.core.science.forward import Forward
from creditgrid.core.science.moments import load_moments, moments_fit, moments_of
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.science.random_streams import generator
from creditgrid.core.units.method import Method

State: TypeAlias = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class FitEpoch:
    """A finished epoch of a fit; epoch 0 is the initialisation, which has no loss.

    ``loss`` is the mean over the epoch's samples of the fitting loss, each taken just before its batch's step.
    ``step_size`` is Adam's in this epoch, and ``seconds`` what the epoch took; a fit that continues an interrupted one
    first yields the epoch at which it continues, without them. ``state`` copies all that the fit needs to continue from
    here; None for a fit that starts again.
    """

    epoch: int
    loss: float | None
    step_size: float | None = None
    seconds: float | None = None
    state: State | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Fitting:
    """What a method is fitted on: a frozen network, the dataset, and the settings that all fits share.

    ``resume`` is the last kept ``state`` of an earlier attempt that was interrupted; None if there is none.
    """

    network: ResidualNetwork
    data: ImageData
    batch_size: int
    seed: int
    resume: Mapping[str, Tensor] | None = None

    @property
    def hidden_size(self) -> int:
        """The number n of elements of a hidden state."""
        return self.network.hidden_size

    @property
    def num_classes(self) -> int:
        return self.data.num_classes

    @property
    def dtype(self) -> torch.dtype:
        """The network's precision."""
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        return self.data.device

    def batches(self, epoch: int) -> Iterator[Forward]:
        """One epoch, from 1, of the augmented training stream, as the network sees it; the last may be smaller."""
        dtype = self.dtype
        for x, y in training_batches(self.data, self.batch_size, self.seed, epoch, stream="fit"):
            with torch.no_grad():
                logits, hiddens = self.network(x.to(dtype), return_hidden=True)
            yield Forward(self.network, hiddens, logits, y)

    def generator(self, stream: str, *index: int, device: torch.device | str | None = None) -> torch.Generator:
        """The named random stream ("fit/STREAM", index…) of the fit's seed, on the data's device unless one is given.

        Draw from such streams alone: then a fit is repeated bit for bit.
        """
        return generator(self.seed, f"fit/{stream}", *index, device=self.device if device is None else device)


def fitted(method: Method, fitting: Fitting) -> Generator[FitEpoch, None, Mapping[str, Tensor]]:
    """The finished epochs of a method's fit; returns the tensors. A method may be a researcher's own, so it is checked.

    Raises:
        TaskError: it yields something else than epochs, or returns something else than tensors by name. A fit that
            diverged has a result: the rows that are measured with it say so.
    """
    found: Any = method.fit(fitting)
    if isinstance(found, Generator):
        found = yield from _checked_epochs(method.name, found)
    if not isinstance(found, Mapping) or not found:
        raise TaskError(f"the fit of {method.name} returned {found!r:.80}: return its tensors by name")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TaskError(f"the fit of {method.name} returned a {type(tensor).__name__} as {name!r}: return tensors")
    return found


def _checked_epochs(name: str, run: Generator[Any, None, Any]) -> Generator[FitEpoch, None, Any]:
    while True:
        try:
            at = next(run)
        except StopIteration as end:
            return end.value
        if not isinstance(at, FitEpoch):
            raise TaskError(f"the fit of {name} yielded a {type(at).__name__}: yield a FitEpoch after each epoch")
        yield at


class Draws:
    """The random streams of one epoch of a fit: each starts when it is first used in the epoch, and then continues."""

    def __init__(self, fitting: Fitting, epoch: int) -> None:
        self._fitting, self._epoch = fitting, epoch
        self._streams: dict[str, torch.Generator] = {}

    def __call__(self, stream: str, device: torch.device | str | None = None) -> torch.Generator:
        """The stream ("fit/STREAM", epoch), on the data's device unless one is given."""
        if stream not in self._streams:
            self._streams[stream] = self._fitting.generator(stream, self._epoch, device=device)
        return self._streams[stream]


BatchLoss: TypeAlias = Callable[[Forward, Draws], Tensor]


def fit_by_adam(
    fitting: Fitting,
    module: nn.Module,
    loss_of: BatchLoss,
    *,
    epochs: int,
    lr: float,
    clip: float | None = 1.0,
    after_step: Callable[[], None] = lambda: None,
    kept: Mapping[str, nn.Module] | None = None,
) -> Iterator[FitEpoch]:
    """Fit ``module`` in place, one Adam step a batch; yields epoch 0, then each finished epoch.

    With ``fitting.resume`` it first yields the epoch at which it continues.

    Args:
        fitting: the network, the batches and the random streams.
        module: has the parameters that are fitted, on the data's device.
        loss_of: the loss of a batch; called with the batch and the epoch's random streams.
        epochs: passes over the training set.
        lr: Adam's step size.
        clip: the greatest norm of the gradient of all parameters; None: it is not clipped.
        after_step: called after each step.
        kept: further modules by name that ``after_step`` changes; they are part of the state.
    """
    modules = {"fitted": module, **{f"kept.{name}": other for name, other in (kept or {}).items()}}
    parameters = list(module.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    last = 0
    if fitting.resume is not None and _resumable(modules, fitting.resume):
        last = _continue_from(fitting.resume, modules, optimizer)

    def epoch_at(
        number: int, loss: float | None, step_size: float | None = None, seconds: float | None = None
    ) -> FitEpoch:
        return FitEpoch(number, loss, step_size, seconds, lambda: _state(modules, optimizer, number, loss))

    yield epoch_at(last, fitting.resume["loss"].item() if last and fitting.resume is not None else None)
    for epoch in range(last + 1, epochs + 1):
        started, step_size = time.perf_counter(), float(optimizer.param_groups[0]["lr"])
        draws = Draws(fitting, epoch)
        total = torch.zeros((), dtype=torch.float64, device=fitting.device)
        for forward in fitting.batches(epoch):
            loss = loss_of(forward, draws)
            optimizer.zero_grad()
            loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
            if clip is not None:
                nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            after_step()
            total += loss.detach() * len(forward.y)
        loss_mean = total.item() / len(fitting.data.y_train)  # waits for the device
        yield epoch_at(epoch, loss_mean, step_size, time.perf_counter() - started)


def _state(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Adam, epoch: int, loss: float | None
) -> dict[str, Tensor]:
    """A copy of all that the fit needs to continue after an epoch."""
    state = _tensors(modules) | moments_of(modules["fitted"], optimizer)
    return {name: tensor.detach().clone() for name, tensor in state.items()} | {
        "epoch": torch.tensor(epoch),
        "loss": torch.tensor(math.nan if loss is None else loss, dtype=torch.float64),
    }


def _tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{which}.{name}": tensor for which, it in modules.items() for name, tensor in it.state_dict().items()}


def _resumable(modules: Mapping[str, nn.Module], state: Mapping[str, Tensor]) -> bool:
    """Whether the state is one of this fit, and of this version."""
    wanted = _tensors(modules)
    if not {"epoch", "loss", *wanted} <= state.keys():
        return False
    fits = all(state[name].shape == tensor.shape for name, tensor in wanted.items())
    return fits and (not state["epoch"] or moments_fit(modules["fitted"], state))


def _continue_from(state: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizer: torch.optim.Adam) -> int:
    """Load the state; returns its epoch."""
    with torch.no_grad():
        for name, tensor in _tensors(modules).items():
            tensor.copy_(state[name])
    epoch = int(state["epoch"])
    if epoch:
        load_moments(modules["fitted"], optimizer, state)
    return epoch

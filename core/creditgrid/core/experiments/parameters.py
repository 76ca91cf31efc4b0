"""Parameters that experiments share, and the tasks that they name: a training run, a credit, a local step.

The parameter model of an experiment inherits from one of these. So equal settings name equal tasks, and sweeps share
checkpoints and estimators.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
from typing import Annotated, Any, NamedTuple, TypeAlias

from pydantic import BeforeValidator, Field

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiments.stages import (
    checkpoint_task,
    code_task,
    data_task,
    feedback_task,
    fit_task,
    probe_task,
    train_task,
)
from creditgrid.core.science.choices import TrainRule
from creditgrid.core.science.imported import CheckpointName
from creditgrid.core.task import Task, TaskKind
from creditgrid.core.units.choice import Choice, ChoosingParams
from creditgrid.core.units.method import Method, is_fitted
from creditgrid.core.units.network import DEFAULT, Network, identity_of
from creditgrid.core.units.unit import Unit


class TrainParams(ChoosingParams):
    """Parameters of a training run: Protocols, section 3 (Training)."""

    dataset: str = Field(description="A dataset's name, or the absolute path of a folder of Parquet files.")
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of every random stream.")

    network: Annotated[str, Choice("networks")] = Field(DEFAULT, description="The network.")
    num_blocks: int = Field(4, ge=1, le=256, description="Residual blocks L.")
    d_hidden: int = Field(256, ge=2, le=16384, description="Width d of the residual stream.")
    residual_add: bool = Field(True, description="h_{l+1} = h_l + F_l(h_l); false: F_l(h_l) alone.")
    w2_std: float = Field(0.01, ge=0, description="Standard deviation of w2's initial weights.")

    train_rule: TrainRule = Field("bp", description="Training by backprop or direct feedback alignment.")
    random_targets: bool = Field(False, description="dfa: uniform random labels for each minibatch.")
    train_epochs: int = Field(
        100, ge=0, le=100_000, description="Epochs of the training run (and of its cosine schedule)."
    )
    batch_size: int = Field(128, ge=1, le=65_536, description="Images per batch, in training, fitting and the probe.")
    lr: float = Field(1e-3, gt=0, description="AdamW's step size in training.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay in training.")

    def conflicts(self, dataset: DatasetRef | None) -> Iterable[tuple[str, str]]:
        if self.network != DEFAULT:  # which takes any images
            yield from self.network_setting.conflicts(None if dataset is None else dataset.image_shape)
        if self.random_targets and self.train_rule != "dfa":
            yield "random_targets", f"random_targets is a flag of train_rule dfa, and train_rule is {self.train_rule}"

    def identity(self) -> dict[str, Any]:
        """The parameters for the key of a cell: all but those of units that it does not choose, the dataset (the
        parents' keys hold its content), and what says of the network that it is the default one."""
        values = self.own_values()
        del values["dataset"]
        if self.measurements:
            values["measurements"] = dict(self.measurements)
        name, network = values["network"], self.choices["network"]
        own, defaults = network.own[name], network.default_values[name]
        if network.values[name](values) == defaults:  # as in most cells
            for parameter in own:
                del values[parameter]
            if name == DEFAULT:
                del values["network"]
            return values
        return {n: value for n, value in values.items() if n not in own or value != defaults[own.index(n)]}

    @property
    def network_setting(self) -> Network:
        """The network, with the cell's values of its parameters."""
        network = self.setting("network")
        assert isinstance(network, Network)
        return network

    def trained(self, dataset: DatasetRef, epoch: int) -> Task:
        """The checkpoint at ``epoch`` of this training run."""
        run = tuple(zip(TRAIN_OPTIONS.values(), _training(self.__dict__), strict=True))
        parents = {**self.training_feedback(dataset), **self.code_for("network")}
        return train_task(dataset, run, epoch, network=self.network_setting, **parents)

    def code_for(self, *choices: str) -> dict[str, Task]:
        """The code of brought units, under its role, if the cell's units of these choices are among them."""
        if not self.known.brought or not any(self.unit(choice) in self.known.brought for choice in choices):
            return {}
        assert self.known.code is not None
        return {"code": code_task(self.known.code)}

    def measure_code(self) -> dict[str, Task]:
        """The code of brought units, under its role, if a unit of the cell or a measurement is among them."""
        if not self.known.brought:
            return {}
        if any(self.known.measurement(name) in self.known.brought for name in self.measurements):
            assert self.known.code is not None
            return {"code": code_task(self.known.code)}
        return self.code_for(*self.choices)

    def training_feedback(self, dataset: DatasetRef) -> dict[str, Task]:
        """The feedback matrices of a training run by dfa, under their role; nothing for bp."""
        return self.feedback(dataset, self.seed) if self.train_rule == "dfa" else {}

    def feedback(self, dataset: DatasetRef, seed: int) -> dict[str, Task]:
        """The feedback matrices of this network's shape, under their role."""
        size = math.prod(self.network_setting.hidden_shape(self.d_hidden))
        return {"feedback": feedback_task(dataset, seed=seed, num_blocks=self.num_blocks, d_hidden=size)}

    def ancestors(self, dataset: DatasetRef, parents: Mapping[str, Task]) -> tuple[Task, ...]:
        """All tasks that a cell with these parents depends on, parents before children."""
        code = {**self.code_for("network"), **parents}.get("code")
        if dataset.code is not None:
            code = code_task(dataset.code)
        before = () if code is None else (code,)
        return (*before, data_task(dataset), *self.training_feedback(dataset).values(), *parents.values())


TRAIN_OPTIONS = {
    name: name.removeprefix("train_") for name in TrainParams.model_fields if name not in ("dataset", "network")
}
"""The parameters of a training run, and their names in the network and in the training."""
_training = operator.itemgetter(*TRAIN_OPTIONS)


class CreditParams(TrainParams):
    """Parameters of a checkpoint, its probe batches, and a credit: Protocols, sections 4 and 5."""

    probe_seed: int | None = Field(
        None, ge=0, lt=2**63, description="Seed of the probe's batches, of B_l and of perturbations; null: `seed`."
    )
    checkpoint: str | None = Field(
        None, max_length=200, description="Name of an imported checkpoint to probe, instead of training one."
    )
    checkpoint_epoch: int | None = Field(
        None,
        ge=0,
        description="Epoch of the probed checkpoint; null: the last. For an imported one: its epoch, if known.",
    )

    method: Annotated[str, Choice("methods")] = Field(description="The method that computes the credit.")

    def conflicts(self, dataset: DatasetRef | None) -> Iterable[tuple[str, str]]:
        yield from super().conflicts(dataset)
        if self.checkpoint is None:
            if self.checkpoint_epoch is not None and self.checkpoint_epoch > self.train_epochs:
                end = f"the end of training (train_epochs {self.train_epochs})"
                yield "checkpoint_epoch", f"checkpoint_epoch {self.checkpoint_epoch} is beyond {end}"
            return
        if self.train_rule != "bp":
            yield "train_rule", "an imported checkpoint is not trained here: leave train_rule out"
        try:
            found = CheckpointName.parse(self.checkpoint)
        except ValueError as error:
            yield "checkpoint", str(error)
            return
        if identity_of(self.network_setting) is not None:
            here = self.network if self.network != DEFAULT else "a variant of it"
            yield (
                "network",
                f"an imported checkpoint is a {DEFAULT} with its defaults, and this cell's network is {here}",
            )
        for field in ("num_blocks", "d_hidden"):
            here, there = getattr(self, field), getattr(found, field)
            if here != there:
                yield field, f"{field} is {here}, and the imported checkpoint's is {there}"
        if dataset is None:
            return
        if dataset.num_classes is not None and dataset.num_classes != found.num_classes:
            has = f"{dataset.name} has {dataset.num_classes} classes"
            yield "checkpoint", f"{has}, and the imported checkpoint has {found.num_classes}"
        if dataset.image_shape is not None:
            channels, height, width = dataset.image_shape
            if (pixels := channels * height * width) != found.input_dim:
                has = f"images of {dataset.name} have {pixels} values"
                yield "checkpoint", f"{has}, and the imported checkpoint takes {found.input_dim}"

    def probed(self, dataset: DatasetRef) -> Task:
        """The probed checkpoint: an imported one, or one of the training run."""
        if self.checkpoint is not None:
            return checkpoint_task(self.checkpoint)
        return self.trained(dataset, self.train_epochs if self.checkpoint_epoch is None else self.checkpoint_epoch)

    def credit_parents(self, dataset: DatasetRef, checkpoint: Task) -> dict[str, Task]:
        """What the credit depends on besides the checkpoint, by role: nothing, ``feedback`` or ``estimator``."""
        method = self.unit("method")
        assert issubclass(method, Method)
        if method.uses_feedback:
            return self.feedback(dataset, streams_seed(self.__dict__))
        if not is_fitted(method):
            return {}
        values = self.choices["method"].values[method.name](self.__dict__)
        own = zip(_local_names(method), values, strict=True)
        fit = fit_task(
            dataset,
            checkpoint,
            method.name,
            (("batch_size", self.batch_size), ("seed", self.seed), *own),
            residual_add=self.residual_add,
            network=self.network_setting,
            **self.code_for("method", "network"),
        )
        return {"estimator": fit}

    def measured(
        self, kind: TaskKind, dataset: DatasetRef, *, data: bool = True, **batches: int
    ) -> tuple[Task, tuple[Task, ...]]:
        """The task that measures this cell, and its ancestors.

        Its parents are ``checkpoint``, ``probe`` (with these ``batches``, see `probe_task`), those of the credit, and
        with ``data`` the dataset. Cells on one checkpoint and one probe are one group, so they share the seed of the
        streams.
        """
        # A million cells have the same few hundred parents.
        credit = _credit(type(self))(self.__dict__)
        code = self.measure_code().get("code")
        below = _below(type(self), credit, dataset, data, tuple(batches.items()), code)
        task = kind.task(self.identity(), below.parents, group=below.group, source={"dataset": dataset.name})
        return task, below.ancestors


class _Below(NamedTuple):
    """What is below a measured cell."""

    parents: Mapping[str, Task]
    group: tuple[str | int, ...]
    ancestors: tuple[Task, ...]


@cache
def _credit_parameters(params: type[CreditParams]) -> tuple[str, ...]:
    """The parameters that name a checkpoint, its probe and a credit."""
    owned = frozenset[str]().union(*(params.choices[name].all for name in ("network", "method")))
    return tuple(name for name in params.model_fields if name in owned or name in CreditParams.model_fields)


@cache
def _credit(params: type[CreditParams]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """Picks their values."""
    return operator.itemgetter(*_credit_parameters(params))


@lru_cache(4096)
def _below(  # noqa: PLR0917 (positional arguments are hashed faster)
    kind: type[CreditParams],
    credit: tuple[Any, ...],
    dataset: DatasetRef,
    data: bool,
    batches: tuple[tuple[str, int], ...],
    code: Task | None,
) -> _Below:
    params = kind.of_valid(dict(zip(_credit_parameters(kind), credit, strict=True)))
    checkpoint = params.probed(dataset)
    seed = streams_seed(params.__dict__)
    probe = probe_task(dataset, **{"batch_size": params.batch_size, "seed": seed, **dict(batches)})
    parents = {"checkpoint": checkpoint, "probe": probe, **params.credit_parents(dataset, checkpoint)}
    if data:
        parents["data"] = data_task(dataset)
    group: tuple[str | int, ...] = (checkpoint.key, probe.key, params.residual_add)
    if code is not None:  # cells that use brought code are in calls of their own: where it fails, no other cell does
        parents["code"] = code
        group = (*group, code.key)
    if kind.measurements:
        group = (*group, *kind.measurements)
    return _Below(parents, group, params.ancestors(dataset, parents))


def _none(value: Any) -> Any:
    return None if value == "none" else value


Clamp: TypeAlias = Annotated[float | None, BeforeValidator(_none)]
CLAMP = "Bound of each gradient element, before weight decay; null or none: no bound."


class StepParams(CreditParams):
    """Parameters of a local step: its batch, its rule, and the regularisation of its gradient and its length."""

    step_batch_size: int | None = Field(
        None, ge=1, le=65_536, description="Images in the batch of a local step; null: `batch_size`."
    )
    step_weight_decay: float = Field(0.0, ge=0, description="Weight decay λ of the local step: p - η (∇ + λ p).")
    step_noise: float = Field(0.0, ge=0, description="Scale σ of the Gaussian noise added to each gradient element.")
    step_radius: float | None = Field(
        None, gt=0, description="Trust region: the greatest length ‖Δθ‖₂ of a local step; null: no bound."
    )
    clamp: Clamp = Field(None, gt=0, description=CLAMP)
    rule: Annotated[str, Choice("rules")] = Field("inner_product", description="The local loss of each block.")

    @property
    def step_images(self) -> int:
        """Images in a local step's batch."""
        return self.batch_size if self.step_batch_size is None else self.step_batch_size


@cache
def _local_names(unit: type[Unit]) -> tuple[str, ...]:
    return tuple(unit.model_fields)


def streams_seed(params: Mapping[str, Any]) -> int:
    """The seed of a cell's probe batches, feedback matrices and perturbations."""
    found = params["seed"] if params["probe_seed"] is None else params["probe_seed"]
    return int(found)


def enough_blocks(update_range: str, num_blocks: int) -> Iterable[tuple[str, str]]:
    """A fault if the range has more blocks than the network."""
    if update_range == "last2" and num_blocks < 2:
        yield "update_range", "update_range last2 needs num_blocks of at least 2"


def enough_images(dataset: DatasetRef | None, *needs: tuple[str, int, int]) -> Iterable[tuple[str, str]]:
    """A fault for each of ``needs`` (field to blame, full batches, images a batch) that exceeds the training set."""
    for field, batches, size in needs:
        if dataset is not None and batches * size > dataset.num_train:
            wanted = f"{batches} full batches of {size:,} images are {batches * size:,}"
            has = f"the training set of {dataset.name} holds {dataset.num_train:,}"
            yield field, f"{wanted}, and {has}: use fewer or smaller batches"

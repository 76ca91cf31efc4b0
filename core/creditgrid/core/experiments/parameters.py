"""Parameters that experiments share, and the tasks that they name: a training run, a credit, a local step.

The parameter model of an experiment inherits from one of these. So equal settings name equal tasks, and sweeps share
checkpoints and estimators.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiment import Params
from creditgrid.core.experiments.stages import (
    checkpoint_task,
    data_task,
    feedback_task,
    fit_task,
    probe_task,
    train_task,
)
from creditgrid.core.science.choices import Method, Reduction, Signal, TrainRule
from creditgrid.core.science.imported import CheckpointName
from creditgrid.core.task import Task, TaskKind

FIT_EPOCHS = {"vec": 60, "scalar_cb": 100, "state_bridge": 100}
FIT_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "vec": {"vec_directions": "num_directions", "vec_eps": "eps"},
    "scalar_cb": {
        "cb_lambda": "temperature",
        "cb_samples": "num_samples",
        "cb_sigma": "sigma",
        "cb_ema": "ema",
        "cb_term_grad_weight": "term_grad_weight",
        "cb_source": "s_source",
    },
    "state_bridge": {},
}
"""For each method with an estimator: its parameters, and their names in its fit function."""
METHOD_PARAMETERS = (
    "oracle_reduction",
    "fit_epochs",
    "fit_lr",
    *(name for names in FIT_OPTIONS.values() for name in names),
)
"""Parameters of one method or another; they may differ between the methods in a comparison."""


class TrainParams(Params):
    """Parameters of a training run: Protocols, section 3 (Training)."""

    dataset: str = Field(description="A dataset's name, or the absolute path of a folder of Parquet files.")
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of every random stream.")

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

    def conflicts(self, dataset: DatasetRef | None) -> Iterable[tuple[str, str]]:  # noqa: ARG002
        if self.random_targets and self.train_rule != "dfa":
            yield "random_targets", f"random_targets is a flag of train_rule dfa, and train_rule is {self.train_rule}"

    def identity(self) -> dict[str, Any]:
        """Every parameter for the key of a cell, except the dataset: the parents' keys hold its content."""
        values = self.__dict__.copy()
        del values["dataset"]
        return values

    def trained(self, dataset: DatasetRef, epoch: int) -> Task:
        """The checkpoint at ``epoch`` of this training run."""
        run = tuple(zip(TRAIN_OPTIONS.values(), _training(self.__dict__), strict=True))
        return train_task(dataset, run, epoch, **self.training_feedback(dataset))

    def training_feedback(self, dataset: DatasetRef) -> dict[str, Task]:
        """The feedback matrices of a training run by dfa, under their role; nothing for bp."""
        return self.feedback(dataset, self.seed) if self.train_rule == "dfa" else {}

    def feedback(self, dataset: DatasetRef, seed: int) -> dict[str, Task]:
        """The feedback matrices of this network's shape, under their role."""
        return {"feedback": feedback_task(dataset, seed=seed, num_blocks=self.num_blocks, d_hidden=self.d_hidden)}

    def ancestors(self, dataset: DatasetRef, parents: Mapping[str, Task]) -> tuple[Task, ...]:
        """All tasks that a cell with these parents depends on, parents before children."""
        return (data_task(dataset), *self.training_feedback(dataset).values(), *parents.values())


TRAIN_OPTIONS = {name: name.removeprefix("train_") for name in TrainParams.model_fields if name != "dataset"}
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

    method: Method = Field(description="The method that computes the credit.")
    oracle_reduction: Reduction = Field("mean", description="oracle_bp: reduction of the loss before its gradient.")
    fit_epochs: int | None = Field(
        None, ge=0, le=100_000, description="Epochs of fitting; null: vec 60, scalar_cb and state_bridge 100."
    )
    fit_lr: float = Field(1e-3, gt=0, description="Adam's step size in fitting.")
    vec_directions: int = Field(4, ge=1, le=1024, description="vec: number M of directions.")
    vec_eps: float = Field(1e-3, gt=0, description="vec: half-width ε of the central difference.")
    cb_lambda: float = Field(0.1, gt=0, description="scalar_cb: temperature λ of the soft minimum.")
    cb_samples: int = Field(4, ge=1, le=1024, description="scalar_cb: number K of perturbed next states.")
    cb_sigma: float = Field(0.05, ge=0, description="scalar_cb: scale σ of the perturbations.")
    cb_ema: float = Field(0.995, ge=0, le=1, description="scalar_cb: decay of the averaged value net.")
    cb_term_grad_weight: float = Field(1.0, ge=0, description="scalar_cb: weight of the terminal gradient's loss.")
    cb_source: Signal = Field("e_T", description="scalar_cb: the signal s, an input of the value net.")

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
        if self.method == "dfa":
            return self.feedback(dataset, streams_seed(self.__dict__))
        if self.method not in FIT_OPTIONS:
            return {}
        options = {
            "epochs": FIT_EPOCHS[self.method] if self.fit_epochs is None else self.fit_epochs,
            "batch_size": self.batch_size,
            "lr": self.fit_lr,
            "seed": self.seed,
            **{option: self.__dict__[name] for name, option in FIT_OPTIONS[self.method].items()},
        }
        fit = fit_task(dataset, checkpoint, self.method, tuple(options.items()), residual_add=self.residual_add)
        return {"estimator": fit}

    def measured(
        self, kind: TaskKind, dataset: DatasetRef, *, data: bool = True, **batches: int
    ) -> tuple[Task, tuple[Task, ...]]:
        """The task that measures this cell, and its ancestors.

        Its parents are ``checkpoint``, ``probe`` (with these ``batches``, see `probe_task`), those of the credit, and
        with ``data`` the dataset. Cells on one checkpoint and one probe are one group, so they share the seed of the
        streams.
        """
        checkpoint = self.probed(dataset)
        seed = streams_seed(self.__dict__)
        probe = probe_task(dataset, **{"batch_size": self.batch_size, "seed": seed, **batches})
        parents = {"checkpoint": checkpoint, "probe": probe, **self.credit_parents(dataset, checkpoint)}
        if data:
            parents["data"] = data_task(dataset)
        group = (checkpoint.key, probe.key, self.residual_add)
        task = kind.task(self.identity(), parents, group=group, source={"dataset": dataset.name})
        return task, self.ancestors(dataset, parents)


class StepParams(CreditParams):
    """Parameters of a local step: its batch, and the regularisation of its gradient."""

    step_batch_size: int | None = Field(
        None, ge=1, le=65_536, description="Images in the batch of a local step; null: `batch_size`."
    )
    step_weight_decay: float = Field(0.0, ge=0, description="Weight decay λ of the local step: p - η (∇ + λ p).")
    step_noise: float = Field(0.0, ge=0, description="Scale σ of the Gaussian noise added to each gradient element.")

    @property
    def step_images(self) -> int:
        """Images in a local step's batch."""
        return self.batch_size if self.step_batch_size is None else self.step_batch_size


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

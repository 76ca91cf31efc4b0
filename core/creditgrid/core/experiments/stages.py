"""The stages below every experiment: data → train → fit, and the fixed inputs of a probe.

One function a stage names its task. Names are memoised: a grid of a million cells depends on a few dozen tasks.

=============  ======================================================================================================
``data``       a dataset's images as uint8 arrays, decoded once
``probe``      the fixed batches on which all cells of one (dataset, batch size, seed) are measured
``feedback``   the fixed matrices B_l of feedback alignment
``train``      a checkpoint: a network's parameters after some epochs of one training run
``fit``        an estimator of the credit, fitted on a frozen checkpoint
``checkpoint`` a network's parameters, imported instead of trained
``code``       the files with the units that a sweep brings
=============  ======================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiments.stage_costs import data_cost, feedback_cost, fit_cost, probe_cost, train_cost
from creditgrid.core.experiments.stage_runs import run_data, run_feedback, run_fit, run_probe, run_train
from creditgrid.core.fingerprint import digest
from creditgrid.core.task import Resources, Task, TaskKind
from creditgrid.core.units.known import Units, installed
from creditgrid.core.units.network import Network, identity_of

EXTRA_BATCHES = 8
"""Batches of a probe besides the same and the held-out one."""
STEP_BATCHES = 8
"""Batches of a probe for rollouts, unless a cell needs more."""

_NAMES = 4096  # memoised names a stage; a plan with more distinct checkpoints hashes some of them again

TRAIN_COST_BY = ("d_hidden", "num_blocks", "batch_size", "rule", "random_targets", "epoch", "network")
FIT_COST_BY = ("estimator", "batch_size", "network")
"""Besides the parameters of the methods: see `with_units`."""

DATA = TaskKind("data", 1, run_data, cost=data_cost)
PROBE = TaskKind("probe", 1, run_probe, cost=probe_cost, cost_by=("batch_size", "extra", "steps", "step_images"))
FEEDBACK = TaskKind("feedback", 1, run_feedback, cost=feedback_cost, cost_by=("num_blocks", "d_hidden"))
TRAIN = TaskKind(
    "train", 1, run_train, Resources(cpu=1, gpu=0.5), max_group=1000, cost=train_cost, cost_by=TRAIN_COST_BY
)


def _fit_version(params: Mapping[str, Any]) -> int:
    """That of the method. The content of brought code is in the keys, so its version is always 1."""
    method = installed().of("methods").get(params["estimator"])
    return 1 if method is None else method.version


FIT = TaskKind(
    "fit", 1, run_fit, Resources(cpu=1, gpu=0.5), version_by=_fit_version, cost=fit_cost, cost_by=FIT_COST_BY
)
CHECKPOINT = TaskKind("checkpoint", 1, None)
CODE = TaskKind("code", 1, None)
STAGES = (DATA, PROBE, FEEDBACK, TRAIN, FIT, CHECKPOINT, CODE)


def with_units(units: Units) -> tuple[TaskKind, ...]:
    """The stages, whose fits cost what these methods say."""
    own = {name for method in units.of("methods").values() for name in method.model_fields}
    fit = replace(FIT, cost=partial(fit_cost, units=units), cost_by=(*FIT_COST_BY, *sorted(own)))
    return tuple(fit if kind is FIT else kind for kind in STAGES)


@lru_cache(_NAMES)
def data_task(dataset: DatasetRef) -> Task:
    """The decoded dataset."""
    code = {} if dataset.code is None else {"code": code_task(dataset.code)}
    return DATA.task({"fingerprint": dataset.fingerprint}, code, source=dict(dataset.source))


@lru_cache(_NAMES)
def probe_task(
    dataset: DatasetRef,
    *,
    batch_size: int,
    seed: int,
    extra: int = EXTRA_BATCHES,
    steps: int = 0,
    step_images: int = 0,
) -> Task:
    """The fixed batches of Protocols, section 2 (Data); only (dataset, batch size, seed) and their number decide them.

    ``extra`` batches of ``batch_size`` besides the same and the held-out one; ``steps`` batches of ``step_images``.
    """
    params = {"batch_size": batch_size, "seed": seed, "extra": extra, "steps": steps, "step_images": step_images}
    return PROBE.task(params, {"dataset": data_task(dataset)})


def step_batches(dataset: DatasetRef, steps: int, images: int) -> int:
    """The number of batches of ``images`` that a probe holds for rollouts of ``steps`` steps.

    It is rounded up as far as the dataset allows, so that rollouts of different lengths share probes.
    """
    rounded = max(STEP_BATCHES, 1 << (steps - 1).bit_length())
    return max(steps, min(rounded, dataset.num_train // images))


@lru_cache(_NAMES)
def feedback_task(dataset: DatasetRef, *, seed: int, num_blocks: int, d_hidden: int) -> Task:
    """The feedback matrices of one seed and network shape; the dataset gives the number of classes."""
    return FEEDBACK.task(
        {"seed": seed, "num_blocks": num_blocks, "d_hidden": d_hidden}, {"dataset": data_task(dataset)}
    )


@lru_cache(_NAMES)
def train_task(
    dataset: DatasetRef,
    run: tuple[tuple[str, Any], ...],
    epoch: int,
    *,
    network: Network | None = None,
    feedback: Task | None = None,
    code: Task | None = None,
) -> Task:
    """The checkpoint at ``epoch`` of one training run; all checkpoints of a run are one group.

    ``run`` holds the arguments of the network and of its training by name. A run by ``dfa`` needs its ``feedback``, and
    one of a brought network its ``code``.
    """
    params, parents = {**dict(run), **_of_network(network)}, {"dataset": data_task(dataset)}
    if feedback is not None:
        parents["feedback"] = feedback
    if code is not None:
        parents["code"] = code
    group = (digest(params), *(parent.key for parent in parents.values()))
    return TRAIN.task(params | {"epoch": epoch}, parents, group=group)


@lru_cache(_NAMES)
def checkpoint_task(name: str) -> Task:
    """An imported checkpoint; its name holds its shape and the SHA-256 of its content (see ``science.imported``)."""
    return CHECKPOINT.task({"name": name})


@lru_cache(_NAMES)
def code_task(sha256: str) -> Task:
    """The files of brought code, by the SHA-256 of their content (see ``core.units.code``)."""
    return CODE.task({"sha256": sha256})


@lru_cache(_NAMES)
def fit_task(
    dataset: DatasetRef,
    checkpoint: Task,
    method: str,
    options: tuple[tuple[str, Any], ...],
    *,
    residual_add: bool,
    network: Network | None = None,
    code: Task | None = None,
) -> Task:
    """A method fitted on ``checkpoint``; ``options`` are the shared settings of fits and the method's parameters."""
    params = {"estimator": method, "residual_add": residual_add, **dict(options), **_of_network(network)}
    parents = {"dataset": data_task(dataset), "checkpoint": checkpoint}
    if code is not None:
        parents["code"] = code
    return FIT.task(params, parents)


def _of_network(network: Network | None) -> dict[str, Any]:
    """What a task's parameters say of the network: nothing of the default one."""
    said = None if network is None else identity_of(network)
    return {} if said is None else {"network": said}

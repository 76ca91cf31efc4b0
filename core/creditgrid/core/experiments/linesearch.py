"""Same-batch line search: does a step along a method's credit lower the loss on the batch it was computed on?

For each (method, update range, norm mode) one local update direction is computed on the probe's *same* batch, from
hiddens taken once before any step; each step size moves the parameters along it (plain SGD), and the change of the
loss is measured on that batch and on the *held* batch. The direction does not depend on the step size, so all cells of
one checkpoint are one call: one direction each, all step sizes in one batched pass.
"""

# torch is imported where it is used: plans are made on machines that have none.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiment import Column, Experiment, Params, Row, Summary, Verdict
from creditgrid.core.stages import (
    data_task,
    feedback_task,
    fit_task,
    probe_task,
    restore_estimator,
    restore_network,
    tensors,
    train_task,
)
from creditgrid.core.statistics import mean_std_ci
from creditgrid.core.task import Inputs, Output, Progress, Resources, Task, TaskKind

if TYPE_CHECKING:
    import torch

ORACLE_DESCENDS = -1e-6
"""The oracle's best raw delta_loss_same must be below this, or the implementation is suspect."""
GROUPED = ("method", "update_range", "norm_mode")
"""Every line of the summary is of one of each of these."""
AVERAGED = ("seed", "probe_seed", "eta")
"""A line of the summary is a mean over the seeds, at the best step size."""


class LinesearchParams(Params):
    """Parameters of a line-search cell; each may be fixed or an axis."""

    dataset: str = Field(description="A dataset's name, or the absolute path of a folder of Parquet files.")
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of every random stream.")
    probe_seed: int | None = Field(
        None, ge=0, lt=2**63, description="Seed of the probe's batches and B_l; null: `seed`."
    )

    num_blocks: int = Field(4, ge=1, le=256, description="Residual blocks L.")
    d_hidden: int = Field(256, ge=2, le=16384, description="Width d of the residual stream.")
    residual_add: bool = Field(True, description="h_{l+1} = h_l + F_l(h_l); false drops the h_l.")
    w2_std: float = Field(0.01, ge=0, description="Standard deviation of w2's initial weights.")

    train_epochs: int = Field(
        100, ge=0, le=100_000, description="Epochs of the training run (and of its cosine schedule)."
    )
    checkpoint_epoch: int | None = Field(None, ge=0, description="Epoch of the probed checkpoint; null: the last.")
    batch_size: int = Field(128, ge=1, le=65_536, description="Images a batch, in training, fitting and the probe.")
    lr: float = Field(1e-3, gt=0, description="AdamW's step size in training.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay in training.")

    method: Literal["oracle_bp", "vec", "scalar_cb", "dfa"] = Field(description="Where the credit comes from.")
    oracle_reduction: Literal["mean", "sum"] = Field(
        "mean", description="Reduction of the loss whose gradient oracle_bp is."
    )
    fit_epochs: int | None = Field(
        None, ge=0, le=100_000, description="Epochs of fitting; null: vec 60, scalar_cb 100."
    )
    fit_lr: float = Field(1e-3, gt=0, description="Adam's step size in fitting.")
    vec_directions: int = Field(4, ge=1, le=1024, description="vec: directions M.")
    vec_eps: float = Field(1e-3, gt=0, description="vec: half-width ε of the central difference.")
    cb_lambda: float = Field(0.1, gt=0, description="scalar_cb: temperature λ of the soft minimum.")
    cb_samples: int = Field(4, ge=1, le=1024, description="scalar_cb: perturbed next states K.")
    cb_sigma: float = Field(0.05, ge=0, description="scalar_cb: scale σ of the perturbations.")
    cb_ema: float = Field(0.995, ge=0, le=1, description="scalar_cb: decay of the averaged value net.")
    cb_term_grad_weight: float = Field(1.0, ge=0, description="scalar_cb: weight of the terminal gradient's loss.")
    cb_source: Literal["e_T", "delta_L"] = Field("e_T", description="scalar_cb: the signal s the value net is given.")

    update_range: Literal["last1", "last2", "all"] = Field("all", description="Blocks that take the step.")
    norm_mode: Literal["raw", "norm"] = Field("raw", description="norm: a_l divided by its RMS, per sample.")
    update_head: Literal["auto", "always", "never"] = Field("auto", description="auto: the head steps unless last1.")
    eta: float = Field(description="Step size η of the local update.", ge=0)

    def conflicts(self) -> Iterable[tuple[str, str]]:
        if self.checkpoint_epoch is not None and self.checkpoint_epoch > self.train_epochs:
            end = f"the end of training (train_epochs {self.train_epochs})"
            yield "checkpoint_epoch", f"checkpoint_epoch {self.checkpoint_epoch} is beyond {end}"
        if self.update_range == "last2" and self.num_blocks < 2:
            yield "update_range", "update_range last2 needs num_blocks of at least 2"


COLUMNS: Mapping[str, Column] = {
    "loss_before_same": Column("float64", "Cross-entropy on the same batch before the step, nats."),
    "loss_after_same": Column("float64", "Cross-entropy on the same batch after the step, nats."),
    "delta_loss_same": Column("float64", "Change of the loss on the same batch, nats; negative is descent."),
    "delta_loss_held": Column("float64", "Change of the loss on the held-out batch, nats."),
    "delta_acc_same": Column("float64", "Change of the accuracy on the same batch, fraction."),
    "credit_rms": Column(
        "float64", "RMS of the raw credit over the width, mean over the batch and the updated blocks."
    ),
}


def cell(params: LinesearchParams, dataset: DatasetRef | None) -> tuple[Task, Sequence[Task]]:
    """The measure task of one cell, and the tasks it stands on."""
    assert dataset is not None  # the parameter is required, so the plan has resolved it
    probe_seed = params.seed if params.probe_seed is None else params.probe_seed
    epoch = params.train_epochs if params.checkpoint_epoch is None else params.checkpoint_epoch
    checkpoint = train_task(
        dataset,
        seed=params.seed,
        epoch=epoch,
        epochs=params.train_epochs,
        num_blocks=params.num_blocks,
        d_hidden=params.d_hidden,
        residual_add=params.residual_add,
        w2_std=params.w2_std,
        batch_size=params.batch_size,
        lr=params.lr,
        weight_decay=params.weight_decay,
    )
    probe = probe_task(dataset, batch_size=params.batch_size, seed=probe_seed)
    parents = {"checkpoint": checkpoint, "probe": probe}
    if params.method == "dfa":
        parents["feedback"] = feedback_task(
            dataset, seed=probe_seed, num_blocks=params.num_blocks, d_hidden=params.d_hidden
        )
    elif params.method in ("vec", "scalar_cb"):
        parents["estimator"] = fit_task(
            dataset, checkpoint, params.method, _fit_options(params), residual_add=params.residual_add
        )
    # Every parameter is in the cell's key: a row shows them all. The dataset is in it by content, through the parents.
    identity = {name: value for name, value in params.__dict__.items() if name != "dataset"}
    group = (checkpoint.key, probe.key)
    measure_task = MEASURE.task(identity, parents, group=group, source={"dataset": dataset.name})
    return measure_task, (data_task(dataset), *parents.values())


def _fit_options(params: LinesearchParams) -> tuple[tuple[str, Any], ...]:
    default_epochs = 60 if params.method == "vec" else 100
    options: dict[str, Any] = {
        "epochs": default_epochs if params.fit_epochs is None else params.fit_epochs,
        "batch_size": params.batch_size,
        "lr": params.fit_lr,
        "seed": params.seed,
    }
    if params.method == "vec":
        options |= {"num_directions": params.vec_directions, "eps": params.vec_eps}
    else:
        options |= {
            "temperature": params.cb_lambda,
            "num_samples": params.cb_samples,
            "sigma": params.cb_sigma,
            "ema": params.cb_ema,
            "term_grad_weight": params.cb_term_grad_weight,
            "s_source": params.cb_source,
        }
    return tuple(options.items())


def measure(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """All cells of one checkpoint in one batched pass."""
    import torch

    from creditgrid.core.credit import credits
    from creditgrid.core.line_search import Step, line_search

    shared = tasks[0]
    network = restore_network(inputs[shared.parents["checkpoint"]], device, residual_add=shared.params["residual_add"])
    probe = {name: tensor.to(device) for name, tensor in tensors(inputs[shared.parents["probe"]]).items()}
    x_same, y_same = probe["x_same"], probe["y_same"]
    with torch.no_grad():
        logits, hiddens = network(x_same, return_hidden=True)

    sources: dict[str, torch.Tensor] = {}
    steps = []
    for task in tasks:
        source = _credit_source(task)
        if source not in sources:
            feedback = estimator = None
            if "feedback" in task.parents:
                matrices = tensors(inputs[task.parents["feedback"]])
                feedback = torch.stack([matrices[f"B.{layer}"] for layer in range(network.num_blocks)]).to(device)
            if "estimator" in task.parents:
                estimator = restore_estimator(inputs[task.parents["estimator"]], device)
            sources[source] = credits(
                task.params["method"],
                network,
                hiddens,
                logits,
                y_same,
                feedback=feedback,
                estimator=estimator,
                s_source=task.params["cb_source"],
                oracle_reduction=task.params["oracle_reduction"],
            )
        head = task.params["update_head"]
        update_head = head == "always" or (head == "auto" and task.params["update_range"] != "last1")
        steps.append(
            Step(source, task.params["update_range"], task.params["norm_mode"], task.params["eta"], update_head)
        )
    results = line_search(network, x_same, y_same, probe["x_held"], probe["y_held"], sources, steps)
    for task, result in zip(tasks, results, strict=True):
        yield Output(task.key, rows=[result._asdict()])


def _credit_source(task: Task) -> str:
    """What the credit depends on beside the checkpoint and the batch."""
    origin = task.parents.get("estimator") or task.parents.get("feedback") or task.params["oracle_reduction"]
    return f"{task.params['method']}/{origin}"


def summarise(rows: Sequence[Row]) -> Summary:
    """For each (method, range, norm): the step size with the lowest delta_loss_same, as mean over seeds.

    Whatever else varies in the sweep, such as checkpoint_epoch, has lines of its own: cells that differ in nothing but
    the seeds are averaged (mean, standard deviation, 95 % half-width, n). Diverged cells never win.
    """
    varied = [name for name in LinesearchParams.model_fields if name not in AVERAGED and _varies(name, rows)]
    columns = [*GROUPED, *(name for name in varied if name not in GROUPED)]
    groups: dict[tuple[Any, ...], dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[tuple(row[name] for name in columns)][row["eta"]].append(row)
    table = []
    for group in sorted(groups, key=_order):
        by_eta = groups[group]
        finite = {eta: [row for row in some if _measured(row)] for eta, some in by_eta.items()}
        line: dict[str, Any] = {
            **dict(zip(columns, group, strict=True)),
            "best_eta": None,
            "n": 0,
            "diverged": sum(len(by_eta[eta]) - len(some) for eta, some in finite.items()),
        }
        # A step size at which any seed diverged cannot be best: its mean would hide the seed that blew up.
        whole = {eta: some for eta, some in finite.items() if len(some) == len(by_eta[eta])}
        if whole:
            same = {eta: mean_std_ci([row["delta_loss_same"] for row in some]) for eta, some in whole.items()}
            best = min(same, key=lambda eta: (same[eta].mean, eta))
            held = mean_std_ci([row["delta_loss_held"] for row in whole[best]])
            line |= {
                "best_eta": best,
                "n": same[best].n,
                "delta_loss_same": same[best].mean,
                "delta_loss_same_std": same[best].std,
                "delta_loss_same_ci95": same[best].ci95,
                "delta_loss_held": held.mean,
                "delta_loss_held_std": held.std,
                "delta_loss_held_ci95": held.ci95,
            }
        table.append(line)
    shown = [*columns, "best_eta", "delta_loss_same", "delta_loss_held", "n", "diverged"]
    return Summary("Best step size by delta_loss_same", shown, table, _verdicts(table))


def _varies(name: str, rows: Sequence[Row]) -> bool:
    return len({row[name] for row in rows}) > 1


def _measured(row: Row) -> bool:
    return not row["diverged"] and row["delta_loss_same"] is not None and row["delta_loss_held"] is not None


def _order(group: tuple[Any, ...]) -> list[tuple[bool, Any]]:
    return [(value is not None, value) for value in group]  # a parameter left at null sorts first


def _verdicts(table: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    raw = [
        line["delta_loss_same"]
        for line in table
        if line["method"] == "oracle_bp" and line["norm_mode"] == "raw" and line["best_eta"] is not None
    ]
    if not raw:
        return []
    numbers = {"oracle_best_raw_delta_loss_same": min(raw), "threshold": ORACLE_DESCENDS}
    if min(raw) < ORACLE_DESCENDS:
        return [Verdict("oracle descends", f"the oracle's best raw step changes the loss by {min(raw):.3g}", numbers)]
    text = (
        f"the oracle's best raw step changes the loss by {min(raw):.3g}, not below {ORACLE_DESCENDS:g}: "
        "the implementation is suspect, or the step sizes are far from useful ones"
    )
    return [Verdict("oracle does not descend", text, numbers, warning=True)]


MEASURE = TaskKind("linesearch", 1, measure, Resources(cpu=1, gpu=0.25), max_group=8192)

EXPERIMENT = Experiment(
    name="linesearch",
    title="Same-batch line search over step sizes",
    params=LinesearchParams,
    columns=COLUMNS,
    measure=MEASURE,
    cell=cell,
    summarise=summarise,
)

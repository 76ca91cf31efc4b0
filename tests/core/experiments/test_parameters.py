"""Parameters that experiments share: what makes no sense together is refused with its place, whoever asks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import SpecError
from creditgrid.core.experiment import Experiment
from creditgrid.core.experiments.parameters import CreditParams, StepParams, TrainParams, enough_images, streams_seed
from creditgrid.core.experiments.registry import registry
from creditgrid.core.experiments.stages import STAGES
from creditgrid.core.naming import NamedTask, name_cells
from creditgrid.core.plan import Fate, Found, Known, Plan, Step
from creditgrid.core.spec.grid import Grid
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate

CREDIT_RECOVERY = registry().experiments["credit_recovery"]
DYNAMICS = registry().experiments["dynamics"]
EXPLOITABILITY = registry().experiments["exploitability"]
LINESEARCH = registry().experiments["linesearch"]
SNAPSHOT_TIME = registry().experiments["snapshot_time"]

DATASET = DatasetRef("pictures", "d" * 64, 5000, 100, 10, (3, 32, 32), {"package": "parquet", "path": "/p"})
PROBING = [CREDIT_RECOVERY, EXPLOITABILITY, LINESEARCH, SNAPSHOT_TIME]
EXPERIMENTS = [*PROBING, DYNAMICS]


def name(blocks: int = 4, width: int = 256, inputs: int = 3072, classes: int = 10, digit: str = "a") -> str:
    return f"L{blocks}-d{width}-D{inputs}-C{classes}-{digit * 64}"


def base(experiment: Experiment) -> dict[str, Any]:
    """The values that an experiment requires."""
    values: dict[str, Any] = {"dataset": "pictures", "method": "vec", "eta": 0.1}
    required = {field for field, info in experiment.params.model_fields.items() if info.is_required()}
    assert required <= values.keys()
    return {field: value for field, value in values.items() if field in required}


def grid(experiment: Experiment, fixed: Mapping[str, Any], **document: Any) -> Grid:
    spec = {"name": "n", "experiment": experiment.name, "fixed": {**base(experiment), **fixed}, **document}
    for axis in document.get("axes", {}):
        spec["fixed"].pop(axis, None)
    return validate(parse(spec), experiment, [kind.name for kind in (*STAGES, experiment.measure)])


def faults(
    experiment: Experiment, fixed: Mapping[str, Any], dataset: DatasetRef | None = DATASET, **document: Any
) -> dict[str, str]:
    datasets = None if dataset is None else {"pictures": dataset}
    with pytest.raises(SpecError) as caught:
        list(grid(experiment, fixed, **document).cells(datasets))
    return {fault.pointer: fault.detail for fault in caught.value.faults}


def fine(experiment: Experiment, fixed: Mapping[str, Any], dataset: DatasetRef | None = DATASET) -> None:
    assert len(list(grid(experiment, fixed).cells(None if dataset is None else {"pictures": dataset}))) == 1


def ids(experiment: Experiment) -> str:
    return experiment.name


# -- conflicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=ids)
def test_random_targets_are_for_dfa_alone(experiment: Experiment) -> None:
    fine(experiment, {"random_targets": True, "train_rule": "dfa"})
    fine(experiment, {"random_targets": False, "train_rule": "bp"})
    detail = "random_targets is a flag of train_rule dfa, and train_rule is bp"
    assert faults(experiment, {"random_targets": True}) == {"/fixed/random_targets": detail}
    assert faults(experiment, {"train_rule": "bp"}, axes={"random_targets": [False, True]}) == {
        "/axes/random_targets/1": detail
    }


@pytest.mark.parametrize("experiment", PROBING, ids=ids)
def test_a_checkpoint_beyond_training_is_refused(experiment: Experiment) -> None:
    fine(experiment, {"checkpoint_epoch": 5, "train_epochs": 5})
    assert faults(experiment, {"train_epochs": 5}, axes={"checkpoint_epoch": [0, 6]}) == {
        "/axes/checkpoint_epoch/1": "checkpoint_epoch 6 is beyond the end of training (train_epochs 5)"
    }


@pytest.mark.parametrize("experiment", PROBING, ids=ids)
def test_an_imported_checkpoint_is_of_the_epoch_it_is_said_to_be_and_not_trained(experiment: Experiment) -> None:
    fine(experiment, {"checkpoint": name()})
    fine(experiment, {"checkpoint": name(), "checkpoint_epoch": 500})  # whatever train_epochs says
    detail = "an imported checkpoint is not trained here: leave train_rule out"
    assert faults(experiment, {"checkpoint": name(), "train_rule": "dfa"}) == {"/fixed/train_rule": detail}


@pytest.mark.parametrize(
    ("network", "pointer", "here"),
    [({"network": "conv"}, "/fixed/network", "conv"), ({"activation": "relu"}, "/fixed", "a variant of it")],
    ids=str,
)
def test_an_imported_checkpoint_is_the_default_network(network: dict[str, Any], pointer: str, here: str) -> None:
    found = faults(LINESEARCH, {"checkpoint": name(), **network})
    wanted = f"an imported checkpoint is a residual_mlp with its defaults, and this cell's network is {here}"
    assert found == {pointer: wanted}


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_a_network_may_refuse_the_images(experiment: Experiment) -> None:
    fine(experiment, {"network": "conv", "grid": 16})
    fine(experiment, {"network": "transformer", "heads": 3, "d_hidden": 32})
    detail = "images of 32 x 32 pixels cannot be cut into 5 x 5 patches"
    assert faults(experiment, {"network": "conv", "grid": 5}) == {"/fixed/grid": detail}
    assert "kernel is 4, and must be odd" in faults(experiment, {"network": "conv", "kernel": 4})["/fixed/kernel"]
    assert "grid is a parameter of the network conv" in faults(experiment, {"grid": 4})["/fixed/grid"]


@pytest.mark.parametrize("experiment", PROBING, ids=ids)
@pytest.mark.parametrize(
    ("imported", "pointer", "detail"),
    [
        (name(blocks=3), "/fixed/num_blocks", "num_blocks is 4, and the imported checkpoint's is 3"),
        (name(width=32), "/fixed/d_hidden", "d_hidden is 256, and the imported checkpoint's is 32"),
        (
            name(classes=7),
            "/fixed/checkpoint",
            "pictures has 10 classes, and the imported checkpoint has 7",
        ),
        (
            name(inputs=784),
            "/fixed/checkpoint",
            "images of pictures have 3072 values, and the imported checkpoint takes 784",
        ),
    ],
)
def test_an_imported_checkpoint_fits_the_parameters_and_the_data(
    experiment: Experiment, imported: str, pointer: str, detail: str
) -> None:
    shape = {"num_blocks": 4, "d_hidden": 256}
    assert faults(experiment, {**shape, "checkpoint": imported}) == {pointer: detail}


def test_a_shape_that_is_left_out_is_asked_for_where_it_may_be_given() -> None:
    found = faults(LINESEARCH, {"checkpoint": name(blocks=3, width=32)})
    assert found == {"/fixed": "num_blocks is 4, and the imported checkpoint's is 3"}
    fine(LINESEARCH, {"checkpoint": name(blocks=3, width=32), "num_blocks": 3, "d_hidden": 32})


def test_what_is_not_known_of_a_dataset_is_not_held_against_a_checkpoint() -> None:
    vague = DatasetRef("pictures", "d" * 64, 5000, 100, None, None, {})
    fine(LINESEARCH, {"checkpoint": name(inputs=5, classes=3)}, vague)
    fine(LINESEARCH, {"checkpoint": name(inputs=5, classes=3)}, None)
    assert set(faults(LINESEARCH, {"checkpoint": name(blocks=3)}, None)) == {"/fixed"}


@pytest.mark.parametrize(
    "wrong", ["checkpoint", name()[:-1], name()[:-1] + "G", "L0" + name()[2:], "L257" + name()[2:], " " + name(), ""]
)
@pytest.mark.parametrize("experiment", PROBING, ids=ids)
def test_what_is_no_name_of_a_checkpoint_is_refused(experiment: Experiment, wrong: str) -> None:
    assert set(faults(experiment, {"checkpoint": wrong})) == {"/fixed/checkpoint"}


# -- enough images -------------------------------------------------------------------------------------------------


def sized(images: int) -> DatasetRef:
    return DatasetRef("pictures", "d" * 64, images, 100, 10, (3, 32, 32), {})


@pytest.mark.parametrize(
    ("experiment", "fixed", "needed", "pointer"),
    [
        # The same, the held-out and eight extra batches.
        (CREDIT_RECOVERY, {"batch_size": 20}, 200, "/fixed/batch_size"),
        (LINESEARCH, {"batch_size": 20}, 200, "/fixed/batch_size"),
        (
            LINESEARCH,
            {"step_batch_size": 30, "batch_size": 20},
            300,
            "/fixed/step_batch_size",
        ),
        (
            LINESEARCH,
            {"step_batch_size": 10, "batch_size": 600},
            100,
            "/fixed/step_batch_size",
        ),
        (SNAPSHOT_TIME, {"batch_size": 20}, 200, "/fixed/batch_size"),
        (SNAPSHOT_TIME, {"batch_size": 20, "extra_batches": 8}, 200, "/fixed/batch_size"),
        (SNAPSHOT_TIME, {"batch_size": 20, "extra_batches": 9}, 220, "/fixed/extra_batches"),
        (
            SNAPSHOT_TIME,
            {"batch_size": 20, "extra_batches": 100},
            2040,
            "/fixed/extra_batches",
        ),
        (EXPLOITABILITY, {"batch_size": 20}, 200, "/fixed/batch_size"),
        # And k batches to step on.
        (EXPLOITABILITY, {"batch_size": 20, "k": 5, "step_batch_size": 50}, 250, "/fixed/k"),
        (EXPLOITABILITY, {"batch_size": 20, "step_batch_size": 50}, 250, "/fixed"),
        (EXPLOITABILITY, {"batch_size": 20, "k": 9}, 200, "/fixed/batch_size"),
        (EXPLOITABILITY, {"batch_size": 20, "k": 11}, 220, "/fixed/k"),
        (EXPLOITABILITY, {"batch_size": 20, "k": 17, "step_batch_size": 30}, 510, "/fixed/k"),
        (EXPLOITABILITY, {"batch_size": 20, "k": 1024}, 20480, "/fixed/k"),
    ],
    ids=lambda value: value.name if isinstance(value, Experiment) else None,
)
def test_a_cell_that_needs_more_images_than_there_are_is_refused(
    experiment: Experiment, fixed: dict[str, Any], needed: int, pointer: str
) -> None:
    fine(experiment, fixed, sized(needed))
    found = faults(experiment, fixed, sized(needed - 1))
    assert set(found) == {pointer}
    assert f"are {needed:,}, and the training set of pictures holds {needed - 1:,}" in found[pointer]
    fine(experiment, fixed, None)  # not known yet, so not held against it


def test_dynamics_takes_any_number_of_images() -> None:
    fine(DYNAMICS, {"batch_size": 512}, sized(3))


def test_enough_images_says_how_many_are_missing_where() -> None:
    end = "images are 5,000, and the training set of pictures holds 4,999: use fewer or smaller batches"
    assert list(enough_images(sized(4999), ("a", 10, 500), ("b", 1, 4999), ("c", 5, 1000))) == [
        ("a", f"10 full batches of 500 {end}"),
        ("c", f"5 full batches of 1,000 {end}"),
    ]
    assert list(enough_images(None, ("a", 10, 500))) == []


# -- single values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "field", "wrong"),
    [
        (EXPLOITABILITY, "k", 0),
        (EXPLOITABILITY, "k", 1025),
        (EXPLOITABILITY, "kappa", 0.0),
        (EXPLOITABILITY, "clamp", 0.0),
        (EXPLOITABILITY, "clamp", "nothing"),
        (EXPLOITABILITY, "rule", "hebb"),
        (EXPLOITABILITY, "eval", "train"),
        (EXPLOITABILITY, "step_noise", -1e-9),
        (EXPLOITABILITY, "step_weight_decay", -1e-9),
        (EXPLOITABILITY, "step_batch_size", 0),
        (SNAPSHOT_TIME, "extra_batches", 1),
        (SNAPSHOT_TIME, "eta", -1.0),
        (DYNAMICS, "logs_every", 0),
        (DYNAMICS, "train_rule", "hebb"),
        (CREDIT_RECOVERY, "method", "gradient"),
        (CREDIT_RECOVERY, "batch_size", 0),
        (CREDIT_RECOVERY, "cb_source", "h_L"),
        (CREDIT_RECOVERY, "seed", -1),
        (CREDIT_RECOVERY, "seed", 2**63),
    ],
    ids=lambda value: value.name if isinstance(value, Experiment) else str(value),
)
def test_a_value_out_of_its_range_is_refused_where_it_stands(experiment: Experiment, field: str, wrong: Any) -> None:
    assert set(faults(experiment, {field: wrong})) == {f"/fixed/{field}"}


# -- what is shared ------------------------------------------------------------------------------------------------


def test_seeds_of_the_streams() -> None:
    assert streams_seed({"seed": 3, "probe_seed": None}) == 3
    assert streams_seed({"seed": 3, "probe_seed": 0}) == 0
    assert streams_seed({"seed": 3, "probe_seed": 9}) == 9


@pytest.mark.parametrize(("step", "images"), [(None, 20), (20, 20), (7, 7), (50, 50)])
def test_a_step_takes_the_batch_it_is_given_or_the_usual_one(step: int | None, images: int) -> None:
    assert StepParams(dataset="d", method="dfa", batch_size=20, step_batch_size=step).step_images == images


def test_a_cells_identity_is_every_parameter_of_its_own_but_the_datasets_name() -> None:
    params: Any = CREDIT_RECOVERY.params(dataset="pictures", method="vec", vec_eps=0.5)
    own = {"fit_epochs": 60, "fit_lr": 1e-3, "vec_directions": 4, "vec_eps": 0.5}
    shared = set(CreditParams.model_fields) - {"dataset", "network"}  # the default network is in no key
    assert params.identity() == {name: value for name, value in params.model_dump().items() if name in shared} | own
    assert set(TrainParams.model_fields) < set(CreditParams.model_fields) < set(StepParams.model_fields)


# -- imported checkpoints ------------------------------------------------------------------------------------------


def planned(lookup: dict[str, Known], fixed: dict[str, Any], **document: Any) -> tuple[Plan, list[Step]]:
    experiment = CREDIT_RECOVERY
    kinds = {kind.name: kind for kind in (*STAGES, experiment.measure)}

    def look_up(tasks: Any) -> dict[str, Found]:
        return {task.key: Found(lookup[which]) for task in tasks if (which := known_as(task)) in lookup}

    plan = Plan(kinds)
    chunks = name_cells(grid(experiment, fixed, **document), kinds, {"pictures": DATASET})
    steps = [plan.add(chunk, look_up) for chunk in chunks]
    return plan, [*steps, *(plan.add_left(numbers, look_up) for numbers in plan.left())]


def known_as(task: NamedTask) -> str:
    return str(json.loads(task.params)["name"]) if task.kind == "checkpoint" else task.kind


HERE, LOST, NEVER = name(digit="1"), name(digit="2"), name(digit="3")
LOOKUP = {HERE: Known.DONE, LOST: Known.GONE}


def test_a_checkpoint_that_was_imported_is_planned_on() -> None:
    plan, steps = planned(LOOKUP, {"checkpoint": HERE})
    assert sum(len(step.cells) for step in steps) == 1
    kinds = {item.task.kind for step in steps for item in step.stages}
    assert kinds == {"data", "probe", "checkpoint", "fit"}  # nothing is trained
    assert not plan.calls["checkpoint"]


def test_a_checkpoint_that_is_gone_is_not_missed_when_every_row_is_there() -> None:
    plan, steps = planned({"credit_recovery": Known.DONE, LOST: Known.GONE}, {"checkpoint": LOST})
    assert sum(len(step.cells) for step in steps) == 1
    unneeded = {item.task.kind for step in steps for item in step.stages if item.fate is Fate.UNNEEDED}
    assert unneeded >= {"checkpoint"}
    assert not plan.calls


@pytest.mark.parametrize(
    ("fixed", "document", "pointers"),
    [
        ({"checkpoint": NEVER}, {}, {"/fixed/checkpoint": NEVER}),
        ({"checkpoint": LOST}, {}, {"/fixed/checkpoint": LOST}),
        ({}, {"axes": {"checkpoint": [None, NEVER, HERE]}}, {"/axes/checkpoint/1": NEVER}),
        (
            {},
            {"axes": {"checkpoint": [HERE, NEVER, LOST], "method": ["dfa", "vec"]}},
            {"/axes/checkpoint/1": NEVER, "/axes/checkpoint/2": LOST},
        ),
        ({}, {"axes": {"seed": [1, 2]}, "include": [{"checkpoint": NEVER}]}, {"/include/0/checkpoint": NEVER}),
        ({}, {"include": [{"seed": 1}, {"checkpoint": NEVER}]}, {"/include/1/checkpoint": NEVER}),
        (
            {},
            {"axes": {"checkpoint": [None, HERE]}, "include": [{"checkpoint": NEVER}]},
            {"/include/0/checkpoint": NEVER},
        ),
        ({"checkpoint": HERE}, {"include": [{"checkpoint": NEVER}]}, {"/include/0/checkpoint": NEVER}),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused_with_its_place(
    fixed: dict[str, Any], document: dict[str, Any], pointers: dict[str, str]
) -> None:
    with pytest.raises(SpecError) as caught:
        planned(LOOKUP, fixed, **document)
    assert {fault.pointer: fault.detail for fault in caught.value.faults} == {
        where: f"there is no checkpoint {which}: import it first (creditgrid import-checkpoint FILE)"
        for where, which in pointers.items()
    }

"""Ours beside the published figures: only what was computed is judged, and it is judged as the numbers say."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.client import watch
from creditgrid.client.cli import main as cli
from creditgrid.client.errors import BadSetting
from creditgrid.client.reproduce.comparison import Agreement, Comparison, Figure, Status, compare
from creditgrid.client.reproduce.published import EXPERIMENTS, PUBLISHED, PublishedColumn
from creditgrid.client.reproduce.report import Settings, example, specs
from creditgrid.core.experiments.registry import registry
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate
from creditgrid.core.states import State

ETAS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
METHODS = ("dfa", "scalar_cb", "vec", "oracle_bp")
SHIFT = PublishedColumn(
    "shift", "exploitability", "delta_loss", {"rule": "target_shift"}, {"dfa": -0.1, "vec": 0.2, "x": None}
)
STEP = PublishedColumn("step", "linesearch", "delta_loss_same", {"norm_mode": "raw"}, {"vec": -0.1}, at_best_eta=True)

Row = dict[str, Any]


def row(value: float | None, seed: int = 42, method: str = "vec", **others: Any) -> Row:
    """An exploitability row of the checkpoint at the end of training."""
    common = {"experiment": "exploitability", "train_epochs": 100, "checkpoint_epoch": None, "diverged": False}
    return {**common, "rule": "target_shift", "seed": seed, "method": method, "delta_loss": value, **others}


def step(value: float | None, eta: float, seed: int = 42, **others: Any) -> Row:
    return row(None, seed, experiment="linesearch", norm_mode="raw", eta=eta, delta_loss_same=value, **others)


def figure(found: Comparison, method: str = "vec") -> Figure:
    (one,) = [figure for figure in found.figures if figure.method == method]
    return one


def judged(column: PublishedColumn, rows: list[Row], seeds: list[int], **others: Any) -> Figure:
    return figure(compare(column, rows, seeds, [1e-3, 1e-2], **others))


# --- signs


@pytest.mark.parametrize(
    ("value", "agreement"), [(1e-9, Agreement.AGREES), (-1e-9, Agreement.DISAGREES), (0.0, Agreement.UNCLEAR)]
)
def test_a_sign_of_one_seed(value: float, agreement: Agreement) -> None:
    found = judged(SHIFT, [row(value)], [42])
    assert (found.value, found.published, found.n, found.ci95) == (value, 0.2, 1, None)
    assert found.agreement is agreement


def test_a_sign_is_unclear_where_the_interval_spans_zero() -> None:
    # t_{0.975, 1} = 12.706; of 0.1 and 0.3 the half-width is 12.706 · 0.1.
    wide = judged(SHIFT, [row(0.1, 42), row(0.3, 43)], [42, 43])
    assert (wide.value, wide.n) == (pytest.approx(0.2), 2)
    assert wide.ci95 == pytest.approx(1.2706, rel=1e-4)
    assert wide.agreement is Agreement.UNCLEAR
    narrow = judged(SHIFT, [row(0.2, 42), row(0.21, 43)], [42, 43])
    assert narrow.agreement is Agreement.AGREES
    assert judged(SHIFT, [row(-0.2, 42), row(-0.21, 43)], [42, 43]).agreement is Agreement.DISAGREES


def test_what_was_not_published_is_shown_and_not_judged() -> None:
    found = figure(compare(SHIFT, [row(0.5, method="x")], [42], []), "x")
    assert (found.value, found.published, found.agreement) == (0.5, None, None)


# --- nothing to judge


@pytest.mark.parametrize("absent", [Status.MISSING, Status.FAILED, Status.CANCELLED])
def test_missing_rows(absent: Status) -> None:
    one = judged(SHIFT, [], [42], absent=absent)
    assert (one.status, one.value, one.agreement, one.note) == (absent, None, None, "no result")
    some = judged(SHIFT, [row(0.2, 43)], [42, 43, 44], absent=absent)
    assert (some.status, some.value, some.agreement) == (absent, None, None)
    assert some.note == "no result at 2 of 3 seeds"


def test_a_diverged_number_is_no_number() -> None:
    found = judged(SHIFT, [row(0.2, 42), row(None, 43, diverged=True)], [42, 43])
    assert (found.status, found.value, found.agreement) == (Status.DIVERGED, None, None)
    assert found.note == "diverged at 1 of 2 seeds"
    assert judged(SHIFT, [row(None)], [42]).status is Status.UNDEFINED


def test_rows_of_other_cells_are_passed_over() -> None:
    others = [
        row(9.0, rule="inner_product"),
        row(9.0, checkpoint_epoch=20),
        row(9.0, experiment="linesearch"),
        row(9.0, seed=43),
        row(9.0, method="dfa"),
    ]
    assert judged(SHIFT, others, [42]).status is Status.MISSING
    assert judged(SHIFT, [*others, row(0.1, checkpoint_epoch=100)], [42]).value == 0.1


# --- the best step size


def test_the_best_step_size_has_the_lowest_mean() -> None:
    rows = [step(-0.5, 1e-3, 42), step(-0.1, 1e-3, 43), step(-0.35, 1e-2, 42), step(-0.33, 1e-2, 43)]
    found = judged(STEP, rows, [42, 43])
    assert (found.eta, found.value) == (1e-2, pytest.approx(-0.34))


def test_a_step_size_at_which_a_seed_diverged_is_not_eligible() -> None:
    rows = [step(-0.1, eta, seed) for eta in (1e-3, 1e-2) for seed in (42, 43)]
    rows[2] |= {"delta_loss_same": -9.0}
    rows[3] |= {"diverged": True}
    found = judged(STEP, rows, [42, 43])
    assert (found.eta, found.value, found.agreement) == (1e-3, pytest.approx(-0.1), Agreement.AGREES)
    rows[0] |= {"delta_loss_same": None, "diverged": True}
    found = judged(STEP, rows, [42, 43])
    assert (found.status, found.note, found.agreement) == (Status.DIVERGED, "diverged at every step size", None)


def test_the_best_of_some_step_sizes_is_not_the_best() -> None:
    found = judged(STEP, [step(-0.1, 1e-3)], [42], absent=Status.FAILED)
    assert (found.status, found.value, found.eta) == (Status.FAILED, None, None)


# --- the order


def order(rows: list[Row], seeds: list[int], **figures: float | None) -> dict[tuple[str, str], Agreement]:
    found = compare(replace(SHIFT, figures=figures), rows, seeds, [])
    return {(pair.higher, pair.lower): pair.agreement for pair in found.order}


def test_the_order_of_each_pair() -> None:
    rows = [row(0.1, method="dfa"), row(0.3, method="vec"), row(0.2, method="oracle_bp"), row(9.0, method="scalar_cb")]
    assert order(rows, [42], dfa=0.0, vec=0.1, oracle_bp=0.2, scalar_cb=None) == {
        ("vec", "dfa"): Agreement.AGREES,
        ("oracle_bp", "dfa"): Agreement.AGREES,
        ("oracle_bp", "vec"): Agreement.DISAGREES,
    }


def test_the_order_is_judged_only_where_both_figures_exist() -> None:
    rows = [row(0.1, method="dfa"), row(None, method="vec", diverged=True)]
    assert order(rows, [42], dfa=0.0, vec=0.1, oracle_bp=0.2) == {}
    assert order([row(0.1, method="dfa"), row(0.2)], [42], dfa=0.1, vec=0.1) == {}, "a published tie claims nothing"


def test_the_order_over_seeds_is_of_the_differences() -> None:
    """Seeds that differ much among each other leave the order clear where it is the same at each."""
    rows = [row(10.0 * seed, seed, "dfa") for seed in (42, 43, 44)]
    rows += [row(10.0 * seed + 1 + 0.01 * seed, seed, "vec") for seed in (42, 43, 44)]
    assert order(rows, [42, 43, 44], dfa=0.0, vec=1.0) == {("vec", "dfa"): Agreement.AGREES}
    rows[0] |= {"delta_loss": 430.0}
    assert order(rows, [42, 43, 44], dfa=0.0, vec=1.0) == {("vec", "dfa"): Agreement.UNCLEAR}


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_order_and_signs_against_the_obvious(ours: list[float], published: list[float]) -> None:
    column = replace(SHIFT, figures=dict(zip(METHODS, published, strict=True)))
    found = compare(column, [row(value, method=name) for name, value in zip(METHODS, ours, strict=True)], [42], [])
    agree = sum(
        (ours[i] - ours[j]) * (published[i] - published[j]) > 0
        or (ours[i] > ours[j] and published[i] > published[j])  # where the product underflows
        or (ours[i] < ours[j] and published[i] < published[j])
        for i, j in itertools.combinations(range(4), 2)
    )
    assert sum(pair.agreement is Agreement.AGREES for pair in found.order) == agree
    for one, value, said in zip(found.figures, ours, published, strict=True):
        same = (value > 0) == (said > 0)
        assert one.agreement == ("unclear" if value == 0 else "agrees" if same else "disagrees")


# --- the specs


def cells(experiment: str, document: dict[str, Any]) -> list[Any]:
    found = import_module(f"creditgrid.core.experiments.{experiment}").EXPERIMENT
    grid = validate(parse(document), found, kinds=registry().kinds_of(found))
    return list(grid.cells())


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize(
    "settings",
    [Settings(), Settings(1), Settings(3, seeds=2), Settings(7, 2), Settings(fit_epochs=1, dataset="digits")],
    ids=str,
)
def test_specs_are_valid(experiment: str, settings: Settings) -> None:
    counts = {"linesearch": 56, "exploitability": 16, "credit_recovery": 4, "snapshot_time": 9}
    found = cells(experiment, specs(settings)[experiment])
    assert {cell.seed for cell in found} == set(settings.seed_list)
    assert {cell.train_epochs for cell in found} == {settings.epochs}
    assert {cell.dataset for cell in found} == {settings.dataset}
    if experiment != "snapshot_time":
        assert len(found) == counts[experiment] * settings.seeds
    elif settings.epochs == 100:
        assert len(found) == counts[experiment]
        assert {cell.checkpoint_epoch for cell in found} == {5, 20, 100}
    for cell in found:
        fits = settings.scaled_fit_epochs if settings.scaled_fit_epochs != {"vec": 60, "scalar_cb": 100} else {}
        assert cell.fit_epochs == fits.get(cell.method)


def test_the_published_settings_are_the_shipped_specs() -> None:
    for experiment, document in specs(Settings()).items():
        shipped = example(experiment)
        assert shipped["experiment"] == experiment
        assert cells(experiment, document) == cells(experiment, shipped)


@pytest.mark.parametrize(
    ("epochs", "checkpoints", "vec", "scalar_cb"),
    [
        (1, [1], 1, 1),
        (2, [1, 2], 1, 2),
        (10, [1, 2, 10], 6, 10),
        (50, [2, 10, 50], 30, 50),
        (100, [5, 20, 100], 60, 100),
    ],
)
def test_epochs_are_scaled_in_proportion(epochs: int, checkpoints: list[int], vec: int, scalar_cb: int) -> None:
    settings = Settings(epochs)
    assert specs(settings)["snapshot_time"]["axes"]["checkpoint_epoch"] == checkpoints
    assert settings.scaled_fit_epochs == {"vec": vec, "scalar_cb": scalar_cb}
    assert settings.scaled_down is (epochs < 100)


def test_a_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given_, sent in (
        ("./cifar", str(tmp_path / "cifar")),
        ("data/cifar", str(tmp_path / "data" / "cifar")),
        ("/data/cifar", "/data/cifar"),
        ("parquet:/data/cifar", "parquet:/data/cifar"),
        ("cifar100", "cifar100"),
    ):
        assert specs(Settings(dataset=given_))["linesearch"]["fixed"]["dataset"] == sent


def test_only_some_experiments_in_their_order() -> None:
    assert list(specs(Settings(only=("credit_recovery", "linesearch")))) == ["linesearch", "credit_recovery"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "--epochs is a whole number of at least 1; got 0"),
        ({"fit_epochs": -1}, "--fit-epochs"),
        ({"seeds": 0}, "--seeds is a whole number"),
        ({"seeds": 10**9}, "--seeds is at most 1,000"),
        ({"only": ("linesearch", "dynamics")}, "linesearch, exploitability, credit_recovery, snapshot_time; got 'dyn"),
        ({"dataset": ""}, "--dataset is empty"),
    ],
)
def test_bad_settings(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        Settings(**wrong)


def test_the_command_that_asks_for_the_same() -> None:
    assert Settings().command == "creditgrid reproduce"
    settings = Settings(3, 2, 4, "./my data", ("linesearch", "snapshot_time"))
    assert settings.command == (
        "creditgrid reproduce --epochs 3 --fit-epochs 2 --seeds 4 --dataset './my data' "
        "--only linesearch --only snapshot_time"
    )


# --- the command


def published_rows(seeds: list[int], epochs: int = 100) -> list[Row]:
    """Rows of all four experiments that hold the published figures, with a little of the seeds' noise."""

    def rows_of(column: PublishedColumn, method: str, value: float, seed: int) -> Iterator[Row]:
        common = {"experiment": column.experiment, "seed": seed, "method": method, "train_epochs": epochs}
        common |= {"checkpoint_epoch": None, "diverged": False, **column.where}
        value *= 1 + 1e-6 * (seed - 42)
        if not column.at_best_eta:
            yield {**common, column.column: value}
            return
        best = {"dfa": 1e-2, "scalar_cb": 3e-3, "vec": 3e-3, "oracle_bp": 1e-2}[method]
        for eta in ETAS if column.column != "eta" else ():
            yield {**common, "eta": eta, column.column: value if eta == best else 0.9 * min(value, 0.0)}

    merged: dict[tuple[Any, ...], Row] = {}
    for column in PUBLISHED:
        for method, value in column.figures.items():
            for seed in seeds:
                for made in rows_of(column, method, -1e-4 if value is None else value, seed):
                    identity = ("experiment", "seed", "method", "norm_mode", "eta", "rule", "kappa")
                    merged.setdefault(tuple(made.get(name) for name in identity), {}).update(made)
    return list(merged.values())


def serve(service: Any, rows: list[Row]) -> None:
    names = dict.fromkeys(name for made in rows for name in made)
    service.table = pa.table({name: [made.get(name) for made in rows] for name in names})


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], service, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("CREDITGRID_URL", service.url)
    monkeypatch.setattr(watch, "LONGEST_S", 0.1)
    service.on_view = lambda sweep: service.change(sweep, State.SUCCEEDED)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["reproduce", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def line(text: str, *words: str) -> str:
    (found,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return found


def test_everything_agrees(service, run: Run) -> None:
    serve(service, published_rows([42]))
    code, out, err = run()
    assert code == 0, err
    assert "Scaled down" not in out
    assert "published: cifar10, 100 epochs of training, of fitting 60 for vec and 100 for scalar_cb; seed 42" in out
    # 4 + 4 + 2 figures of the line search, 4 + 4 + 4 + 3 · 3 of exploitability, 4 + 4 of credit recovery.
    assert "signs: 39 agrees\n" in out
    assert "orders: 52 agrees\n" in out  # 6 + 6 + 1, 6 + 6 + 6 + 3 · 3, 6 + 6
    assert "step sizes: 4 agrees\n" in out
    assert "disagrees" not in out
    assert "order in norm: dL_same: 6 of 6 pairs agree" in out
    assert "0.619" in line(out, "test accuracy")
    assert "neither sign nor order is claimed" in line(out, "test accuracy")
    posted = [json.loads(body) for _, body in service.posts("/v1/sweeps")]
    # The sweep with the most checkpoints of the training comes first.
    assert [spec["experiment"] for spec in posted] == ["snapshot_time", *EXPERIMENTS[:-1]]


def test_all_are_submitted_before_any_is_waited_for(service, run: Run) -> None:
    serve(service, published_rows([42]))
    run()
    asked = [(method, path) for method, path, _, _ in service.log]
    submitted = [i for i, (method, path) in enumerate(asked) if (method, path) == ("POST", "/v1/sweeps")]
    assert submitted == [0, 1, 2, 3]


def test_disagreement_is_no_failure(service, run: Run) -> None:
    rows = published_rows([42], epochs=3)
    for made in rows:
        if made["experiment"] == "exploitability" and made["method"] == "vec" and made["rule"] == "inner_product":
            made["delta_loss"] = -0.5
    serve(service, rows)
    code, out, _ = run("--epochs", "3", "--only", "exploitability")
    assert code == 0
    assert "Scaled down: the published figures are of 100 epochs and one seed, so disagreement is expected." in out
    assert "signs: 20 agrees, 1 disagrees\n" in out
    inner = line(out, "order in inner_product")
    assert "3 of 6 pairs agree; published but not ours: vec > dfa, vec > scalar_cb, vec > oracle_bp" in inner
    (spec,) = [json.loads(body) for _, body in service.posts("/v1/sweeps")]
    assert spec["fixed"]["train_epochs"] == 3
    assert spec["axes"]["fit_epochs"] == [None, 3, 2, None]
    assert spec["zip"] == [["rule", "kappa"], ["method", "fit_epochs"]]


def test_several_seeds(service, run: Run) -> None:
    rows = published_rows([42, 43, 44])
    for made in rows:
        if made["experiment"] == "credit_recovery" and made["method"] == "dfa":
            made["gamma_mean"] = {42: -0.02, 43: 0.01, 44: 0.03}[made["seed"]]
    serve(service, rows)
    code, out, _ = run("--seeds", "3", "--only", "credit_recovery")
    assert code == 0
    assert "seeds 42 to 44 (mean ± 95 % half-width)" in out
    gamma = line(out, "gamma ", "dfa")
    assert "+0.006667 ± 0.063 (n 3)" in gamma
    assert "sign unclear" in gamma
    assert "signs: 7 agrees, 1 unclear\n" in out


def test_a_failed_sweep(service, run: Run) -> None:
    rows = published_rows([42])
    missing = [made for made in rows if made["experiment"] == "credit_recovery" and made["method"] == "vec"]
    serve(service, [made for made in rows if made not in missing])
    service.failures = [
        {"cause": "ValueError: no", "kind": "fit", "count": 1, "skipped": 1, "attempt": 1, "host": None, "key": "k"}
        | {"traceback": "Tb\n", "command": "creditgrid run-task k"}
    ]
    service.on_view = lambda sweep: service.change(sweep, State.FAILED)
    code, out, _ = run("--only", "credit_recovery", "--json")
    assert code == 1
    report = json.loads(out)
    assert report["complete"] is False
    assert report["sweeps"][0]["state"] == "failed"
    assert report["sweeps"][0]["failures"] == ["fit: ValueError: no (1 failed)"]
    for table in report["comparisons"]:
        by_method = {figure["method"]: figure for figure in table["figures"]}
        assert (by_method["vec"]["status"], by_method["vec"]["value"]) == ("failed", None)
        assert by_method["vec"]["agreement"] is None
        assert by_method["dfa"]["agreement"] == "agrees"
        assert not any("vec" in (pair["higher"], pair["lower"]) for pair in table["order"])
    assert report["counts"]["signs"] == {"agrees": 6, "disagrees": 0, "unclear": 0, "not judged": 2}
    assert report["counts"]["orders"] == {"agrees": 6, "disagrees": 0, "unclear": 0, "not judged": 6}
    code, out, _ = run("--only", "credit_recovery")
    assert code == 1
    assert "no result" in line(out, "vec", "+0.38")
    assert "not judged: no figure of ours" in line(out, "vec", "+0.38")
    assert "order in gamma: 3 of 6 pairs agree; not judged: 3\n" in out
    assert "fit: ValueError: no (1 failed)" in out


def test_a_whole_sweep_without_rows_judges_nothing(service, run: Run) -> None:
    serve(service, [made for made in published_rows([42]) if made["experiment"] == "linesearch"])
    code, out, _ = run("--only", "exploitability")
    assert code == 1
    assert "agrees" not in out
    assert "signs: 21 not judged\n" in out
    assert "orders: 27 not judged\n" in out


def test_a_diverged_figure_was_computed(service, run: Run) -> None:
    rows = published_rows([42])
    for made in rows:
        if made["experiment"] == "exploitability" and made["method"] == "dfa":
            made.update({"delta_loss": None, "diverged": True})
    serve(service, rows)
    code, out, _ = run("--only", "exploitability")
    assert code == 0
    assert "diverged" in line(out, "inner_product: dL", "dfa")
    assert "not judged: no figure of ours" in line(out, "inner_product: dL", "dfa")


def test_json_and_a_file(service, run: Run, tmp_path: Path) -> None:
    serve(service, published_rows([42]))
    file = tmp_path / "report.json"
    code, out, err = run("--json", "--out", str(file))
    assert code == 0
    report = json.loads(out)
    assert json.loads(file.read_text()) == report
    assert f"wrote {file}" in err
    assert report["complete"] is True
    assert len(report["comparisons"]) == len(PUBLISHED)
    assert math.isclose(report["comparisons"][1]["figures"][3]["value"], -0.406)
    assert report["comparisons"][1]["figures"][3]["eta"] == 1e-2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--epochs", "0"], "--epochs is a whole number of at least 1; got 0"),
        (["--seeds", "0"], "--seeds is a whole number of at least 1; got 0"),
        (["--fit-epochs", "0"], "--fit-epochs is a whole number of at least 1; got 0"),
        (["--only", "dynamics"], "got 'dynamics'"),
        (["--out", "no/such/folder/report.json"], "there is no folder"),
        (["--epochs", "many"], "--epochs"),
    ],
)
def test_bad_flags_reach_no_service(service, run: Run, flags: list[str], said: str) -> None:
    code, out, err = run(*flags)
    assert (code, out) == (2, "")
    assert said in err
    assert service.log == []


def test_ctrl_c_leaves_the_sweeps_running(service, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    service.on_view = lambda sweep: None
    monkeypatch.setattr(watch.EventReader, "wait", interrupt)
    code, out, err = run(
        "--epochs", "3", "--only", "linesearch", "--only", "credit_recovery", "--url", service.url + "/"
    )
    assert (code, out) == (130, "")
    command = "for the report run: creditgrid reproduce --epochs 3 --only linesearch --only credit_recovery"
    assert f"the sweeps continue (s1, s2); {command}\n" in err
    assert service.posts("/v1/sweeps/s1/cancel") == []


def test_a_refused_spec_tells_of_the_sweeps_before_it(service, run: Run, spec_problem) -> None:
    service.on_view = lambda sweep: None
    service.faults.extend(["none", spec_problem])
    code, _, err = run()
    assert code == 2
    assert "the sweeps continue (s1)" in err
    assert "eta: must be finite" in err

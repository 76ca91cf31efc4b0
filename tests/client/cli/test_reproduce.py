"""`creditgrid reproduce`: what it submits, and the report it prints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from creditgrid.client import watch
from creditgrid.client.cli import main as cli
from creditgrid.client.reproduce.published import EXPERIMENTS, PUBLISHED, PublishedColumn
from creditgrid.core.experiments.registry import registry
from creditgrid.core.states import State

ETAS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
Row = dict[str, Any]


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
    serve(service, published_rows([42, 43, 44]))
    code, out, err = run("--seeds", "3")
    assert code == 0, err
    assert "Scaled down" not in out
    assert "published: cifar10, 100 epochs of training, of fitting 60 for vec and 100 for scalar_cb; seed 42" in out
    # 4 + 4 + 2 figures of the line search, 4 + 4 + 4 + 3 · 3 of exploitability, 4 + 4 of credit recovery.
    assert "signs: 39 agrees\n" in out
    assert "orders: 52 agrees\n" in out  # 6 + 6 + 1, 6 + 6 + 6 + 3 · 3, 6 + 6
    assert "step sizes: 4 agrees\n" in out
    assert "disagrees" not in out
    assert "no published sign or order is contradicted" in out
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


def test_one_seed_contradicts_nothing(service, run: Run) -> None:
    rows = published_rows([42])
    for made in rows:
        if made["method"] == "vec":
            made["gamma_mean"] = -0.5
    serve(service, rows)
    code, out, err = run("--only", "credit_recovery")
    assert code == 0, err
    assert "agrees" not in out
    assert "signs: 8 unclear\n" in out
    assert "sign unclear: one seed" in line(out, "gamma ", "dfa")
    assert "order in gamma: unclear, one seed; 4 of 6 pairs are as published" in out


def test_what_is_contradicted_beyond_the_intervals_fails(service, run: Run) -> None:
    rows = published_rows([42, 43], epochs=3)
    for made in rows:
        if made["experiment"] == "exploitability" and made["method"] == "vec" and made["rule"] == "inner_product":
            made["delta_loss"] = -0.5
    serve(service, rows)
    code, out, _ = run("--epochs", "3", "--seeds", "2", "--only", "exploitability")
    assert code == 1
    text = " ".join(out.split())
    assert "contradicted: exploitability, inner_product: dL: published vec +0.057, ours -0.5 ± 0 (n 2)" in text
    assert "published vec > scalar_cb (+0.057 > +0.042), our difference -0.542 ± " in text
    assert "of many comparisons a few are contradicted by chance" in text
    report = json.loads(run("--epochs", "3", "--seeds", "2", "--only", "exploitability", "--json")[1])
    assert (report["complete"], report["passed"], len(report["contradictions"])) == (True, False, 4)
    assert "Scaled down: the published figures are of 100 epochs and one seed, so disagreement is expected." in out
    assert "signs: 20 agrees, 1 disagrees\n" in out
    inner = line(out, "order in inner_product")
    assert "3 of 6 pairs agree; published but not ours: vec > dfa, vec > scalar_cb, vec > oracle_bp" in inner
    spec, _ = [json.loads(body) for _, body in service.posts("/v1/sweeps")]
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
    rows = published_rows([42, 43])
    missing = [made for made in rows if made["experiment"] == "credit_recovery" and made["method"] == "vec"]
    serve(service, [made for made in rows if made not in missing])
    service.failures = [
        {"cause": "ValueError: no", "kind": "fit", "count": 1, "skipped": 1, "attempt": 1, "host": None, "key": "k"}
        | {"traceback": "Tb\n", "command": "creditgrid run-task k"}
    ]
    service.on_view = lambda sweep: service.change(sweep, State.FAILED)
    code, out, _ = run("--seeds", "2", "--only", "credit_recovery", "--json")
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
    assert "credit_recovery, gamma: vec: no result at 2 of 2 seeds" in report["missing"]
    code, out, _ = run("--seeds", "2", "--only", "credit_recovery")
    assert code == 1
    assert "no result" in line(out, "vec", "+0.38")
    assert "missing: credit_recovery, gamma: vec: no result at 2 of 2 seeds" in out
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


def whole(rows: list[Row]) -> list[Row]:
    """The rows with every parameter, and of the newest versions."""
    new = {"kind_version": 2, "parent_versions": '{"estimator":2}', "dataset": "/data/mine"}
    found = []
    for number, made in enumerate(rows):
        declared = registry().experiments[made["experiment"]]
        defaults = {name: field.default for name, field in declared.params.model_fields.items()}
        defaults |= {"k": 5, "eta": 1e-3} if made["experiment"] == "exploitability" else {}
        found.append({**defaults, **new, "cell": f"c{number}", **made})
    return found


def test_existing_sweeps_are_compared_and_nothing_is_submitted(service, run: Run) -> None:
    rows = whole(published_rows([42, 43, 44]))
    serve(service, rows)
    service.on_view = lambda sweep: None
    one = service.add(State.SUCCEEDED, experiment="exploitability")
    other, third = service.add(State.RUNNING), service.add(State.SUCCEEDED)  # line searches
    code, out, err = run("--sweep", one, "--sweep", other, "--sweep", third, "--sweep", one)
    assert code == 0, err
    assert not service.posts("/v1/sweeps")
    text = " ".join(out.split())
    assert (
        "ours: exploitability: /data/mine, 100 epochs of training, of fitting 60 for vec and 100 for scalar_cb; "
        "seeds 42 to 44 (mean ± 95 % half-width)" in text
    )
    assert "not compared: credit_recovery, snapshot_time" in out
    assert f"{other} running {third} succeeded" in text.replace("● ", "").replace("✓ ", "")
    assert "signs: 31 agrees\n" in out
    assert "no published sign or order is contradicted" in out
    for made in rows:
        if made["experiment"] == "exploitability" and made["method"] == "oracle_bp":
            made["gamma"] = 0.05
    serve(service, rows)
    code, out, _ = run("--sweep", one, "--only", "exploitability")
    assert code == 1
    text = " ".join(out.split())
    assert (
        "contradicted: exploitability, gamma: published oracle_bp > vec (+1 > +0.378), our difference -0.328 ±" in text
    )


def test_what_existing_sweeps_lack_is_missing(service, run: Run) -> None:
    rows = whole(published_rows([42, 43]))
    lost = [made for made in rows if made["method"] == "vec" and made["seed"] == 43]
    serve(service, [made for made in rows if made not in lost])
    service.on_view = lambda sweep: None
    sweep = service.add(State.FAILED, experiment="exploitability")
    code, out, _ = run("--sweep", sweep)
    assert code == 1
    assert "missing: exploitability, gamma: vec: no result at 1 of 2 seeds" in out
    code, out, _ = run("--sweep", sweep, "--seeds", "1")
    assert code == 0, "the other cells of the sweep do not matter"
    assert "sign unclear: one seed" in out


@pytest.mark.parametrize(
    ("experiment", "flags", "said"),
    [
        ("dynamics", [], "no sweep is of linesearch or exploitability or credit_recovery or snapshot_time: s1 is of"),
        ("linesearch", ["--only", "exploitability"], "no sweep is of exploitability: s1 is of linesearch"),
    ],
)
def test_sweeps_without_published_figures(service, run: Run, experiment: str, flags: list[str], said: str) -> None:
    service.on_view = lambda sweep: None
    code, _, err = run("--sweep", service.add(State.SUCCEEDED, experiment=experiment), *flags)
    assert code == 2
    assert said in " ".join(err.split())


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

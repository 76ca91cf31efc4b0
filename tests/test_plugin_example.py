"""A researcher's own package, built and installed as theirs would be, on a real service beside packages that are unfit.

The service is a process of its own; what it computes is computed again here from what it lets one download.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from creditgrid.client import Client
from creditgrid.client.cli import main as cli
from creditgrid.client.errors import ApiError, InvalidRequest
from creditgrid.client.local_service import LocalService
from creditgrid.client.sweep import Sweep
from creditgrid.core.experiments.registry import ENTRY_POINTS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "tests" / "plugin_example"
SPEC: dict[str, Any] = yaml.safe_load((EXAMPLE / "spectrum.yaml").read_text())
SHIPPED = {"credit_recovery", "dynamics", "exploitability", "linesearch", "snapshot_time"}

# An experiment that is fit, but for what a package says of ``changed``; its cells fail once, as a full disk makes them.
SOUND = """
from dataclasses import replace
from pathlib import Path
from creditgrid.core.experiment import Column, Experiment, Params, Summary
from creditgrid.core.task import Output, TaskKind

class CustomParams(Params):
    marker: str

def run(tasks, inputs, device):
    for task in tasks:
        marker = Path(task.params["marker"])
        if not marker.exists():
            marker.touch()
            raise OSError("the disk is full")
        yield Output(task.key, rows=[{"tries": 2}])

def kind(name):
    return TaskKind(name, 1, run)

def column(type):
    return Column(type, "Anything.")

MEASURE = kind("measure_by_NAME")
SOUND = Experiment(
    name="NAME", title="Custom", params=CustomParams, columns={"tries": column("int64")}, measure=MEASURE,
    cell=lambda params, dataset: (MEASURE.task(dict(params.__dict__)), ()),
    summarise=lambda rows: Summary("Tries", ["tries"], rows, []),
)
changed = lambda **changes: replace(SOUND, **changes)
"""
# Names early in the alphabet: whichever package is looked at first, the shipped experiments are not the ones to yield.
UNFIT = {
    "a_column_of_another": (
        'EXPERIMENT = changed(columns={"gamma": column("string")})',
        "the column 'gamma' is string here and float64 in credit_recovery: use another name",
    ),
    "a_column_twice": (
        'EXPERIMENT = changed(columns={"marker": column("float64")})',
        "marker is both a parameter and a measured column",
    ),
    "a_kind_of_the_stages": (
        'EXPERIMENT = changed(kinds=(kind("train"),))',
        "another package has a task kind 'train'",
    ),
    "a_kind_of_another": (
        'EXPERIMENT = changed(measure=kind("linesearch"))',
        "the task kind 'linesearch' is taken: an experiment measures with its own kind",
    ),
    "a_number": ("EXPERIMENT = 42", "creditgrid_a_number:EXPERIMENT of package creditgrid-a-number is a int"),
    "a_word_lost": ("", "AttributeError when creditgrid_a_word_lost:EXPERIMENT was imported"),
    "an_exit": ("import sys\nsys.exit(3)", "raised SystemExit when creditgrid_an_exit:EXPERIMENT was imported: 3"),
    "an_import": ("import torch_of_the_future", "raised ModuleNotFoundError when creditgrid_an_import:EXPERIMENT was"),
    "an_import_raises": ("raise RuntimeError('no licence')", "raised RuntimeError when", "imported: no licence"),
}
# Experiments that can be registered, and raise when they are used.
RAISING = {
    "raises_at_a_cell": "EXPERIMENT = changed(cell=lambda params, dataset: 1 / 0)",
    "raises_at_conflicts": """
class Raising(CustomParams):
    def conflicts(self, dataset):
        return 1 / 0

EXPERIMENT = changed(params=Raising)""",
    "raises_at_its_summary": "EXPERIMENT = changed(summarise=lambda rows: 1 / 0)",
}


def built(folder: Path) -> Path:
    """The wheel of the example."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def put(folder: Path, name: str, source: str) -> None:
    """Install a package that registers the experiment ``name``."""
    module = f"creditgrid_{name}"
    (folder / f"{module}.py").write_text(SOUND.replace("NAME", name) + source + "\n")
    info = folder / f"{module}-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{name} = {module}:EXPERIMENT\n")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of installed packages, where every process that is started finds them."""
    site = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(built(tmp_path_factory.mktemp("wheel"))) as wheel:  # a wheel is what is installed, zipped
        wheel.extractall(site)
    put(site, "fails_once", "EXPERIMENT = SOUND")
    for name, (source, *_) in UNFIT.items():
        put(site, name, source)
    for name, source in RAISING.items():
        put(site, name, source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        yield site


@pytest.fixture(scope="module")
def client(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    data = str(tmp_path_factory.mktemp("data"))
    with LocalService("--runner", "local", "--data-dir", data) as service, Client(service.url) as made:
        yield made


@pytest.fixture(scope="module")
def sweep(client: Client) -> Sweep:
    """The example's sweep, planned and run."""
    plan = client.plan(SPEC)
    assert {kind: view.new for kind, view in plan.tasks.items()} == {"data": 1, "train": 9, "spectrum": 9}
    assert plan.tasks["train"].calls == 3  # all epochs of one run are one call
    assert plan.tasks["train"].calls + plan.tasks["data"].calls + plan.tasks["spectrum"].calls == 13
    assert (plan.cells.new, plan.groups) == (18, 9)
    return client.submit(SPEC).wait(timeout=120)


def only(sweep: Sweep, **wanted: Any) -> list[dict[str, Any]]:
    rows = sweep.results().table.to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_what_is_installed_is_the_file_and_its_entry_point(installed: Path) -> None:
    (found,) = [one for one in distributions(path=[str(installed)]) if one.name == "creditgrid-spectrum"]
    (point,) = found.entry_points
    assert (point.group, point.name, point.value) == (ENTRY_POINTS, "weight_spectrum", "creditgrid_spectrum:EXPERIMENT")
    assert found.requires == ["creditgrid"]
    assert (installed / "creditgrid_spectrum.py").read_text() == (EXAMPLE / "creditgrid_spectrum.py").read_text()


def test_plans_need_no_torch(installed: Path) -> None:
    probe = "import creditgrid_spectrum, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("name", ["creditgrid_spectrum.py", "pyproject.toml", "spectrum.yaml"])
def test_the_readme_shows_the_package_as_it_is(name: str) -> None:
    language = {".py": "python", ".toml": "toml", ".yaml": "yaml"}[Path(name).suffix]
    assert f"```{language}\n{(EXAMPLE / name).read_text()}```\n" in (ROOT / "README.md").read_text()


def test_every_row_is_what_the_checkpoint_says(client: Client, sweep: Sweep) -> None:
    assert sweep.view.counts == {"succeeded": 18}
    rows = sweep.results().table.to_pylist()
    assert len(rows) == 18 * 4
    assert {(row["seed"], row["checkpoint_epoch"], row["matrix"], row["layer"]) for row in rows} == {
        (seed, epoch, matrix, layer)
        for seed in (0, 1, 2)
        for epoch in (0, 5, 20)
        for matrix in ("w1", "w2")
        for layer in range(4)
    }
    checkpoints: dict[str, str] = {}
    for row in rows:
        spectrum = json.loads(row["parents"])["spectrum"]
        if spectrum not in checkpoints:
            record = client.artifact_record(spectrum)
            assert record["payload"]["kind"] == "spectrum"
            checkpoints[spectrum] = record["payload"]["parents"]["checkpoint"]
    assert len(set(checkpoints.values())) == 9
    tensors = {key: client.artifact(key) for key in checkpoints.values()}
    for row in rows:
        checkpoint = tensors[checkpoints[json.loads(row["parents"])["spectrum"]]]
        weight = checkpoint[f"blocks.{row['layer']}.{row['matrix']}.weight"].astype(np.float64)
        sigma = np.linalg.svd(weight, compute_uv=False)
        entropy = -math.fsum(s / sigma.sum() * math.log(s / sigma.sum()) for s in sigma)
        assert not row["diverged"]
        assert math.isclose(row["top_singular"], np.linalg.norm(weight, 2), rel_tol=1e-9)
        assert math.isclose(row["stable_rank"], np.sum(weight**2) / np.linalg.norm(weight, 2) ** 2, rel_tol=1e-9)
        assert math.isclose(row["effective_rank"], math.exp(entropy), rel_tol=1e-9)


def test_the_summary_has_intervals_over_seeds_and_a_verdict(sweep: Sweep) -> None:
    summary = sweep.summary()
    assert summary.complete
    assert len(summary.rows) == 3 * 2 * 4  # epochs, matrices, layers
    (line,) = [
        line for line in summary.rows if (line["matrix"], line["checkpoint_epoch"], line["layer"]) == ("w2", 20, 3)
    ]
    ranks = [row["stable_rank"] for row in only(sweep, matrix="w2", checkpoint_epoch=20, layer=3)]
    assert line["n"] == line["stable_rank_n"] == len(ranks) == 3
    assert line["diverged"] == 0
    assert math.isclose(line["stable_rank"], np.mean(ranks), rel_tol=1e-12)
    assert math.isclose(line["stable_rank_std"], np.std(ranks, ddof=1), rel_tol=1e-9)
    # 4.302653 is Student's t for 97.5 % and 2 degrees of freedom.
    assert math.isclose(line["stable_rank_ci95"], 4.302653 * np.std(ranks, ddof=1) / math.sqrt(3), rel_tol=1e-6)

    found = {}
    for verdict in summary.verdicts:
        setting = re.match(r"matrix (w[12]), d_hidden 32, checkpoint_epoch (\d+): mean stable rank ", verdict.text)
        assert setting is not None
        matrix, epoch = setting[1], int(setting[2])
        ranks = [row["stable_rank"] for row in only(sweep, matrix=matrix, checkpoint_epoch=epoch)]
        assert len(ranks) == 3 * 4
        assert math.isclose(verdict.numbers["mean_stable_rank"], np.mean(ranks), rel_tol=1e-12)
        assert verdict.numbers["bound"] == 32 / 8
        found[matrix, epoch] = verdict.name
    # A random matrix has 32/4, and training concentrates w2.
    assert found == {(matrix, epoch): "full-rank" for matrix in ("w1", "w2") for epoch in (0, 5, 20)} | {
        ("w2", 20): "low-rank"
    }


def test_sql_reads_the_plugins_columns(client: Client, sweep: Sweep) -> None:
    found = client.query(
        "SELECT layer, matrix, avg(stable_rank) AS rank, count(*) AS n FROM results "
        f"WHERE sweep = '{sweep.id}' AND checkpoint_epoch = 20 GROUP BY ALL ORDER BY layer, matrix"
    ).table.to_pylist()
    assert [(row["layer"], row["matrix"], row["n"]) for row in found] == [
        (layer, matrix, 3) for layer in range(4) for matrix in ("w1", "w2")
    ]
    for row in found:
        wanted = [r["stable_rank"] for r in only(sweep, checkpoint_epoch=20, layer=row["layer"], matrix=row["matrix"])]
        assert math.isclose(row["rank"], np.mean(wanted), rel_tol=1e-12)


def test_a_second_run_runs_nothing(client: Client, sweep: Sweep) -> None:
    plan = client.plan(SPEC)
    assert (plan.cells.cached, plan.cells.new, plan.groups) == (18, 0, 0)
    assert all(view.new == 0 for view in plan.tasks.values())
    again = client.submit(SPEC).wait(timeout=60)
    assert again.state == "cached"
    assert again.view.counts == {"cached": 18}
    assert again.results().table.drop_columns("sweep").equals(sweep.results().table.drop_columns("sweep"))


def test_checkpoints_are_shared_with_the_shipped_experiments(client: Client, sweep: Sweep) -> None:
    steps = {
        "name": "steps on the same checkpoints",
        "experiment": "linesearch",
        "fixed": SPEC["fixed"] | {"method": "oracle_bp"},
        "axes": {"seed": [0, 1, 2], "eta": [1e-3, 1e-2]},
    }
    plan = client.plan(steps)
    assert (plan.tasks["train"].cached, plan.tasks["train"].new) == (3, 0)
    assert (plan.tasks["data"].cached, plan.tasks["data"].new) == (1, 0)
    after = client.submit(steps).wait(timeout=60)
    assert after.view.counts == {"succeeded": 6}
    assert [task.state for task in after.tasks() if task.kind == "train"] == ["cached"] * 3
    assert {json.loads(row["parents"])["checkpoint"] for row in after.results().table.to_pylist()} <= {
        client.artifact_record(json.loads(row["parents"])["spectrum"])["payload"]["parents"]["checkpoint"]
        for row in only(sweep, checkpoint_epoch=20)
    }


def test_a_cell_that_raises_is_reported_and_leaves_the_rest(client: Client, sweep: Sweep) -> None:
    spec = SPEC | {"axes": {"lr": [1e-3, 1e30], "matrix": ["w1", "w2"]}}
    spec["fixed"] = SPEC["fixed"] | {"seed": 0, "checkpoint_epoch": 20}
    failed = client.submit(spec).wait(timeout=60, raise_on_failure=False)
    assert failed.state == "failed"
    assert failed.view.counts == {"cached": 2, "skipped": 2}
    (failure,) = failed.failures()
    assert failure.cause == "TaskError: w1 is not finite: the training diverged, so choose a smaller lr"
    assert "creditgrid_spectrum.py" in failure.traceback
    assert (failure.kind, failure.count, failure.skipped, failure.attempt) == ("spectrum", 1, 2, 1)
    assert len(only(failed)) == 2 * 4

    again = failed.retry().wait(timeout=60, raise_on_failure=False)
    assert again.view.counts == {"cached": 2, "skipped": 2}
    assert [one.cause for one in again.failures()] == [failure.cause]
    assert [event.type for event in again.history()].count("sweep.retried") == 1


def test_what_the_machine_is_to_blame_for_is_tried_again(client: Client, tmp_path: Path) -> None:
    spec = {
        "name": "a full disk",
        "experiment": "fails_once",
        "fixed": {"marker": str(tmp_path / "marker")},
        "retry": {"max": 1, "backoff_s": 0.1},
    }
    rows = client.submit(spec).wait(timeout=60).results().table.to_pylist()
    assert [(row["tries"], row["attempt"]) for row in rows] == [(2, 2)]


def test_matrices_of_zeros_have_no_rank(client: Client) -> None:
    fixed = SPEC["fixed"] | {"seed": 0, "w2_std": 0.0, "checkpoint_epoch": 0}
    sweep = client.submit({"name": "zeros", "experiment": "weight_spectrum", "fixed": fixed}).wait(timeout=60)
    for row in only(sweep):
        assert (row["top_singular"], row["stable_rank"], row["effective_rank"]) == (0.0, None, None)
        assert not row["diverged"]
    assert sweep.summary().verdicts == []


def test_its_parameters_are_checked_as_any(client: Client) -> None:
    spec = SPEC | {"axes": {"checkpoint_epoch": [20, 21], "matrix": ["w2", "w3"]}}
    with pytest.raises(InvalidRequest) as caught:
        client.plan(spec)
    assert [error.pointer for error in caught.value.problem.errors] == ["/axes/matrix/1"]
    spec = SPEC | {"axes": {"checkpoint_epoch": [20, 21]}}
    with pytest.raises(InvalidRequest, match=r"21 is beyond the end of training \(20\)") as caught:
        client.plan(spec)
    assert [error.pointer for error in caught.value.problem.errors] == ["/axes/checkpoint_epoch/1"]


def test_the_api_and_the_command_line_describe_it(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    view = client.experiment("weight_spectrum")
    assert view.problem is None
    assert view.title == "Spectrum of the blocks' weights"
    assert {"checkpoint_epoch", "matrix", "train_epochs", "dataset"} <= set(view.parameters["properties"])
    assert view.columns["stable_rank"].type == "float64"
    assert "in dimensions" in view.columns["stable_rank"].description
    assert {"train", "spectrum", "weight_spectrum"} <= set(view.kinds)
    (chart,) = view.charts
    assert (chart.name, chart.mark, chart.x.columns, chart.series) == ("ranks", "line", ["checkpoint_epoch"], ["layer"])
    assert [measure.columns for measure in chart.measures] == [["stable_rank", "effective_rank"]]

    assert cli.main(["experiments", "--url", client.url]) == 0
    listed = capsys.readouterr().out
    assert "weight_spectrum" in listed
    assert cli.main(["experiments", "weight_spectrum", "--url", client.url]) == 0
    assert "effective_rank" in capsys.readouterr().out


def test_its_chart_is_drawn(sweep: Sweep, tmp_path: Path) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    pictures = sweep.plot(tmp_path, "svg")
    assert [picture.name for picture in pictures] == [f"{sweep.id}-ranks.svg", f"{sweep.id}-curves.svg"]
    text = pictures[0].read_text()
    assert "Rank of the blocks" in text
    assert "rank (dimensions)" in text


@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_package_is_named_and_costs_itself_alone(client: Client, name: str) -> None:
    package, complaints = f"package creditgrid-{name.replace('_', '-')}", UNFIT[name][1:]
    view = client.experiment(name)
    assert view.problem is not None
    assert package in view.problem
    for complaint in complaints:
        assert complaint in view.problem
    for ask in (client.submit, client.plan):
        with pytest.raises(InvalidRequest) as caught:
            ask({"name": "on an unfit one", "experiment": name, "fixed": {"marker": "none"}})
        assert caught.value.problem.status == 422
        (error,) = caught.value.problem.errors
        assert error.pointer == "/experiment"
        assert error.detail == f"the experiment '{name}' cannot be used: {view.problem}"


@pytest.mark.parametrize("name", RAISING)
def test_an_experiment_that_raises_is_named_and_the_service_runs_on(client: Client, name: str, tmp_path: Path) -> None:
    spec = {"name": "raises", "experiment": name, "fixed": {"marker": str(tmp_path / "marker")}, "retry": {"max": 1}}
    before = [sweep.id for sweep in client.sweeps()]
    with pytest.raises(ApiError) as caught:
        client.submit(spec).wait(timeout=60).summary()
    assert caught.value.problem.status == 500
    assert re.search(rf"^{name}: \w+\(\) raised ZeroDivisionError", caught.value.problem.detail)
    # What cannot be planned leaves nothing; what cannot be summarised has its rows.
    after = [sweep for sweep in client.sweeps() if sweep.id not in before]
    assert [sweep.view.counts for sweep in after] == ([{"succeeded": 1}] if name == "raises_at_its_summary" else [])


def test_the_rest_works_beside_unfit_packages(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    views = {view.name: view for view in client.experiments()}
    assert {name for name, view in views.items() if view.problem is not None} == set(UNFIT)
    assert {*SHIPPED, "weight_spectrum", "fails_once"} <= {name for name, view in views.items() if not view.problem}
    assert cli.main(["experiments", "--url", client.url, "-o", "json"]) == 0
    assert {view["name"] for view in json.loads(capsys.readouterr().out)} == set(views)
    fixed = SPEC["fixed"] | {"seed": 7, "train_epochs": 1, "checkpoint_epoch": 1}
    swept = client.submit({"name": "another", "experiment": "weight_spectrum", "fixed": fixed}).wait(timeout=60)
    assert swept.view.counts == {"succeeded": 1}

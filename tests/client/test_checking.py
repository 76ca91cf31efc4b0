"""``creditgrid check`` and ``new``: what the author of a unit sees."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.hostile_code import HOSTILE, Hostile

from creditgrid.client.checking import Checking, summary
from creditgrid.client.cli.main import main
from creditgrid.client.cli.units import skeleton
from creditgrid.client.errors import BadSetting
from creditgrid.core.contract.suite import check_experiment, check_unit
from creditgrid.core.experiments.code_registry import registry_with_brought
from creditgrid.core.experiments.registry import registry, usable
from creditgrid.core.units.brought import experiments, load
from creditgrid.core.units.known import installed

UNITS = ["method", "rule", "network", "dataset", "measurement"]


@pytest.mark.parametrize("kind", UNITS)
@pytest.mark.parametrize("name", ["mine", "my_own_2"])
def test_a_skeleton_passes_its_checks_at_once(kind, name) -> None:
    files = {f"{name}.py": skeleton(kind, name).encode()}
    (unit,) = load(files)
    assert unit.name == name
    installed().with_brought([unit], "0" * 64)
    assert [finding for result in check_unit(unit, quick=False) for finding in result.findings] == []


def test_a_skeleton_of_an_experiment_passes_its_checks_at_once() -> None:
    (found,) = experiments({"trial.py": skeleton("experiment", "trial").encode()})
    results = list(check_experiment(usable(found, registry()), quick=False))
    assert [finding for result in results for finding in result.findings] == []
    assert len(results) > 4


def test_new_writes_a_file_once(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "rule", "damped"]) == 0
    assert (tmp_path / "damped.py").read_text() == skeleton("rule", "damped")
    said = capsys.readouterr().err
    assert "creditgrid check damped.py" in said
    assert "creditgrid submit spec.yaml --code damped.py" in said
    (tmp_path / "damped.py").write_text("mine")
    assert main(["new", "method", "damped"]) == 2
    assert "damped.py exists already" in capsys.readouterr().err
    assert (tmp_path / "damped.py").read_text() == "mine"
    for name in ("../up", "Damped", "1st", "a" * 64, ""):
        assert main(["new", "rule", name]) == 2
    assert main(["new", "optimizer", "damped"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["damped.py"]


@pytest.mark.slow
def test_check_shows_what_passes_and_what_fails(tmp_path: Path, capsys) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(skeleton("rule", "good"))
    bad.write_text(skeleton("rule", "bad").replace(" / branch.shape[-2]", ""))
    assert main(["check", str(good)]) == 0
    shown = capsys.readouterr()
    assert "rule good: mean_b ⟨F, a_l⟩ + ½ pull ‖F‖²  good.py:17" in shown.out
    assert "ok      the gradient is that of a mean" in shown.out
    assert "0 failed, 2 not done" in shown.err
    assert main(["check", str(bad), "-o", "json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["passed"], told["error"]) == (False, None)
    (unit,) = told["units"]
    (failed,) = [check for check in unit["checks"] if check["findings"]]
    (finding,) = failed["findings"]
    assert (finding["file"], finding["line"], unit["unit"]) == ("bad.py", 17, "bad")
    assert "divide by branch.shape[-2]" in finding["problem"]
    assert main(["check", "vex"]) == 2
    assert "did you mean 'vec'?" in capsys.readouterr().err
    assert main(["check", "target_shift", "--quick"]) == 0


@pytest.mark.slow
def test_a_check_that_hangs_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text(skeleton("rule", "slow").replace("    return (", "    while True: pass\n    return ("))
    checking = Checking(str(file))
    list(checking.run(each_s=1))
    failed = [check for unit in checking.units for check in unit.checks if check["findings"]]
    (finding,) = failed[0]["findings"]
    assert (finding["file"], finding["line"]) == ("slow.py", 22)
    assert finding["problem"] == "output_gradient() took longer than 1 s"
    assert summary(checking.units)[1] == 1


@pytest.mark.parametrize("code", [code for code in HOSTILE if not code.dangerous], ids=lambda code: code.name)
def test_a_broken_file_is_refused_with_file_and_line(code: Hostile, tmp_path: Path) -> None:
    from creditgrid.core.contract import check_units
    from creditgrid.core.errors import PluginError
    from creditgrid.core.units.code import sha256_of

    try:
        units = load(code.files)
        registry_with_brought(units, sha256_of(code.files))
        said = "\n".join(map(str, check_units(units)))
    except PluginError as error:
        said = str(error)
    assert re.search(code.said, said), said


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for code in HOSTILE if code.dangerous], ids=lambda code: code.name)
def test_a_dangerous_file_ends_only_its_check(code: Hostile, tmp_path: Path) -> None:
    for name, content in code.files.items():
        (tmp_path / name).write_bytes(content)
    checking = Checking(str(tmp_path / "mine.py"))
    assert list(checking.run(quick=True, each_s=3)) == []
    assert not checking.passed
    assert checking.error is not None
    assert re.search(code.said, checking.error), checking.error
    assert len(checking.printed) <= 64 * 1024


@pytest.mark.slow
def test_a_path_that_is_not_there_is_bad_input() -> None:
    with pytest.raises(BadSetting, match=r"there is no file or folder .*nowhere\.py"):
        list(Checking("nowhere.py").run())

"""The package as it is published: wheel and sdist are built, installed into fresh environments, and used there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from uv import find_uv_bin

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
ROOTS = ("core", "workers", "service", "client")
PROGRAM = f"""
import importlib, sys
for name in {ROOTS!r}:
    print(importlib.import_module("creditgrid." + name).__path__[0])
from creditgrid.core.experiments.registry import registry
print(*sorted(registry().experiments))
from creditgrid.service.ledger.ledger import Ledger
Ledger("sqlite:///ledger.sqlite").close()
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What the command prints; the tests' own environment variables for Python do not reach it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def uv(*arguments: str | Path, cwd: Path) -> str:
    """uv without the network: whatever a build or an install needs is in the environment of the tests."""
    return run(find_uv_bin(), arguments[0], "--offline", *arguments[1:], cwd=cwd)


def sources() -> set[str]:
    """Every file of the four roots in the tree, as a wheel names it."""
    return {
        path.relative_to(ROOT / root).as_posix()
        for root in ROOTS
        for path in (ROOT / root / "creditgrid").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An sdist, the wheel made from it, and a wheel made from the tree."""
    folder = tmp_path_factory.mktemp("built")
    options = ("--no-build-isolation", "--python", sys.executable)
    uv("build", *options, "--out-dir", folder, ROOT, cwd=folder)
    uv("build", *options, "--wheel", "--out-dir", folder / "tree", ROOT, cwd=folder)
    (sdist,), (wheel,), (of_tree,) = (folder.glob(name) for name in ("*.tar.gz", "*.whl", "tree/*.whl"))
    return {"sdist": sdist, "wheel of the sdist": wheel, "wheel of the tree": of_tree}


def test_a_wheel_holds_every_file_of_the_four_roots(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel of the tree"]) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == sources()
    assert {f"creditgrid/{root}/py.typed" for root in ROOTS} <= found
    assert "creditgrid/client/examples/linesearch-digits.yaml" in found


def test_the_wheel_of_the_sdist_is_the_wheel_of_the_tree(built: dict[str, Path]) -> None:
    assert built["wheel of the sdist"].read_bytes() == built["wheel of the tree"].read_bytes()


def test_the_sdist_keeps_the_layout_of_the_repository(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as sdist:
        found = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "Makefile", "tests/test_packaging.py"} <= found
    assert {name for name in found if name.partition("/")[0] in ROOTS} == {
        f"{name.split('/')[1]}/{name}" for name in sources()
    }


def install(package: Path, folder: Path) -> tuple[Path, Path]:
    """Install it into a fresh environment below the folder; the environment's Python and its site-packages."""
    uv("venv", "--python", sys.executable, "env", cwd=folder)
    python = folder / "env/bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # The packages that it needs, and those that build it. What is editable there is not found by this.
    (site / "dependencies.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n")
    uv("pip", "install", "--no-deps", "--no-build-isolation", "--python", python, package, cwd=folder)
    return python, site


@pytest.mark.parametrize("made", ["sdist", "wheel of the sdist", "wheel of the tree"])
def test_it_works_where_it_is_installed(built: dict[str, Path], made: str, tmp_path: Path) -> None:
    python, site = install(built[made], tmp_path)
    *places, experiments = run(python, "-P", "-c", PROGRAM, cwd=tmp_path).splitlines()
    assert places == [str(site / "creditgrid" / name) for name in ROOTS]
    assert experiments.split() == ["credit_recovery", "dynamics", "exploitability", "linesearch", "snapshot_time"]
    assert "Usage: creditgrid" in run(tmp_path / "env/bin/creditgrid", "--help", cwd=tmp_path)


def test_the_installed_service_plans_an_installed_example(built: dict[str, Path], tmp_path: Path) -> None:
    python, site = install(built["sdist"], tmp_path)
    spec = site / "creditgrid/client/examples/linesearch-digits.yaml"
    plan = json.loads(run(python, "-P", "-m", "creditgrid.service", "plan", spec, "--data-dir", "data", cwd=tmp_path))
    assert plan["cells"]["total"] == 336

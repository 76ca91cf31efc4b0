"""The client and its command line need nothing of the service."""

from __future__ import annotations

import subprocess
import sys

FORBIDDEN = (
    "torch",
    "torchvision",
    "ray",
    "fastapi",
    "sqlalchemy",
    "duckdb",
    "deltalake",
    "sklearn",
    "scipy",
    "pandas",
)

PROGRAM = f"""
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN!r} or name.startswith(("creditgrid.service", "creditgrid.workers")):
            raise ModuleNotFoundError(f"{{name}} is forbidden here", name=name)

sys.meta_path.insert(0, Forbid())
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM + program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_hook_forbids() -> None:
    assert (
        run("try:\n    import torch\nexcept ModuleNotFoundError as error:\n    print(error)")
        == "torch is forbidden here\n"
    )


def test_help_needs_neither_the_server_nor_http() -> None:
    program = """
from creditgrid.client.cli import main as cli
code = cli.main(["--help"])
heavy = [name for name in ("httpx", "numpy", "pyarrow", "pydantic", "yaml") if name in sys.modules]
print(code, heavy)
"""
    out = run(program)
    assert out.splitlines()[-1] == "0 []"
    commands = "serve run plan submit ls show watch logs pause resume extend cancel retry"
    others = "token audit reproduce sql export artifact experiments plot import-checkpoint run-task new check code"
    for command in (*commands.split(), *others.split()):
        assert f" {command} " in out


def test_every_module_imports_without_the_server() -> None:
    out = run("""
import importlib, pkgutil
import creditgrid.client
for module in pkgutil.walk_packages(creditgrid.client.__path__, "creditgrid.client."):
    # A skeleton is the start of a unit, which is checked where the server is.
    if not module.name.endswith("__main__") and ".skeletons." not in module.name:
        importlib.import_module(module.name)
for name in creditgrid.client.__all__:
    getattr(creditgrid.client, name)
print([name for name in ("numpy", "pyarrow", "polars") if name in sys.modules])
""")
    assert out == "[]\n"


def test_the_service_is_missed_with_advice() -> None:
    out = run("""
import importlib.machinery, importlib.util
there = importlib.machinery.PathFinder.find_spec
importlib.util.find_spec = lambda name: None if name in ("torch", "ray", "fastapi") else there(name)
from creditgrid.client.cli import main as cli
sys.stderr = sys.stdout
print([cli.main(["serve"]), cli.main(["serve", "--help"])])
""")
    assert "pip install 'creditgrid[server]'" in out
    assert out.splitlines()[-1] == "[1, 1]"


def test_import_is_quick() -> None:
    """A second, by the processor's clock, so that a busy machine hardly matters; the best of three."""
    program = "import time; import creditgrid.client; print(time.process_time())"
    seconds = [
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 1.0

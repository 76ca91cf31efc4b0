"""Units of a notebook become a file: what goes along, and what is refused by its name."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from creditgrid.client.code import files_of
from creditgrid.client.notebook import notebook_text
from creditgrid.core.errors import CodeError
from creditgrid.core.units.brought import load

IMPORTS = """
import math
import numpy as np
import torch.nn.functional as F
from pydantic import Field
from pydantic import Field as Parameter
from typing import Any, ClassVar
from creditgrid.core.experiment import Column
from creditgrid.core.units.decorators import measurement, rule
from creditgrid.core.units.method import Method
from creditgrid.core.units.rule import Rule
"""
LINEAR = """
factor = 2.0

class Linear(Method):
    \"\"\"A linear map.\"\"\"

    name = "linear"
    uses_feedback: ClassVar[bool] = True
    ridge: float = Parameter(1e-3, ge=0, alias="linear_ridge", description="Weight of the ridge.")

    def credit(self, forward: Any, fitted: Any) -> Any:
        return [F.relu(forward) * math.pi for layer in range(3)] + [np.zeros(len(fitted))]
"""


class Notebook:
    """Cells that share one namespace, as in IPython: each is a file of its own that only linecache knows."""

    def __init__(self) -> None:
        self.module = ModuleType("__main__")
        self.count = 0

    def run(self, cell: str, flags: int = 0) -> Any:
        name = f"/tmp/ipykernel_1/{self.count}.py"
        self.count += 1
        linecache.cache[name] = len(cell), None, cell.splitlines(keepends=True), name
        exec(compile(cell, name, "exec", flags, dont_inherit=True), self.module.__dict__)
        return self.module.__dict__


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    found = Notebook()
    monkeypatch.setitem(sys.modules, "__main__", found.module)
    found.run(IMPORTS)
    yield found
    for name in [name for name in linecache.cache if name.startswith("/tmp/ipykernel_1/")]:
        del linecache.cache[name]


def test_a_class_of_a_cell_is_sent_with_the_imports_that_it_uses(notebook: Notebook) -> None:
    linear = notebook.run(LINEAR)["Linear"]
    (path, content), *rest = files_of(linear).items()
    text = content.decode()
    assert (path, rest) == ("notebook.py", [])
    assert "factor" not in text
    assert "import torch.nn.functional as F\n" in text
    assert "from pydantic.fields import Field as Parameter\n" in text
    assert "import math\n" in text
    assert "import Rule" not in text
    (unit,) = load({path: content})
    assert (unit.name, unit.model_fields["ridge"].alias) == ("linear", "linear_ridge")


def test_decorated_functions_are_sent(notebook: Notebook) -> None:
    cell = """
@rule(normalises=True)
def damped(branch, credit, damping: float = Field(0.5, ge=0, description="Damping, dimensionless.")):
    "Damped."
    return credit * damping

@measurement(columns={"norm": "Norm of the update, dimensionless."}, after_step=True)
def update_norm(measured):
    "The norm of the update."
    return {"norm": math.sqrt(sum(float((u * u).sum()) for u in measured.update.values()))}
"""
    found = notebook.run(cell)
    units = load(files_of([found["damped"], found["update_norm"]]))
    assert [unit.name for unit in units] == ["damped", "update_norm"]


def test_a_base_goes_along_if_it_is_sent_too(notebook: Notebook) -> None:
    found = notebook.run(
        "class Base(Rule):\n    '''A base.'''\n    def output_gradient(self, branch, credit):\n        return credit\n"
    )
    found = notebook.run(
        "class Mine(Base):\n    '''Mine.'''\n    name = 'mine'\n    def extra(self):\n        return 1\n"
    )
    with pytest.raises(CodeError, match="Mine uses Base, a class of the notebook"):
        notebook_text([found["Mine"]])
    (unit,) = load(files_of([found["Mine"], found["Base"]]))
    assert unit.name == "mine"


def test_the_last_version_of_a_cell_is_sent_and_magic_commands_are_not_in_the_way(notebook: Notebook) -> None:
    first = notebook.run(LINEAR)["Linear"]
    second = notebook.run(LINEAR.replace("A linear map", "Another"))["Linear"]
    assert "A linear map" in notebook_text([first])
    assert "Another" in notebook_text([second])
    cell = linecache.cache[f"/tmp/ipykernel_1/{notebook.count - 1}.py"]
    linecache.cache[f"/tmp/ipykernel_1/{notebook.count - 1}.py"] = (*cell[:2], ["%time\n", *cell[2][1:]], cell[3])
    assert "Another" in notebook_text([second])


RULE = """class Mine(Rule):
    "Mine."
    name = "mine"
    def output_gradient(self, branch, credit):
        return """


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("factor = 2\n" + RULE + "factor * credit\n", "Mine uses factor, a value of the notebook, which does not go"),
        ("def helper(x):\n    return x\n" + RULE + "helper(credit)\n", "Mine uses helper, a function of the notebook"),
        ("class Other:\n    pass\n" + RULE + "Other()\n", "Mine uses Other, a class of the notebook"),
        (RULE + "nowhere(credit)\n", "Mine uses nowhere, which is not defined"),
        (RULE + "[factor for _ in credit]\n", "Mine uses factor, which is not defined"),
        (
            "def make(alpha):\n"
            + "".join(f"    {line}\n" for line in (RULE + "alpha").splitlines())
            + "    return Mine\n"
            "Mine = make(3)\n",
            "Mine uses alpha, a variable of the function in which it is written",
        ),
        ("Mine = 3\n", "3 is no unit: give a subclass of Method"),
        (
            "Mine = type('Mine', (Rule,), {'name': 'mine', '__module__': '__main__'})\n",
            "the source of Mine is not there",
        ),
    ],
)
def test_what_does_not_go_along_is_refused_by_its_name(notebook: Notebook, cell: str, said: str) -> None:
    mine = notebook.run(cell)["Mine"]
    with pytest.raises(CodeError) as caught:
        files_of(mine)
    assert str(caught.value).startswith(said)


def test_a_module_of_the_folder_does_not_go_along(
    notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_module.py").write_text("def scaled(x):\n    return x\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = notebook.run("import own_module\nfrom own_module import scaled\n" + RULE + "own_module.scaled(credit)\n")
    with pytest.raises(CodeError, match="Mine uses own_module, a module of this folder"):
        files_of(found["Mine"])
    with pytest.raises(CodeError, match="Mine uses scaled, a function of the notebook"):
        files_of(notebook.run(RULE + "scaled(credit)\n")["Mine"])
    monkeypatch.delitem(sys.modules, "own_module")


def test_annotations_stay_text_where_the_notebook_says_so(notebook: Notebook) -> None:
    import __future__

    found = notebook.run(LINEAR, __future__.annotations.compiler_flag)
    assert notebook_text([found["Linear"]]).startswith(
        '"""Sent from a notebook."""\n\nfrom __future__ import annotations\n'
    )


def test_a_unit_of_a_file_that_was_imported_is_sent_as_well() -> None:
    from creditgrid.core.rules.target_shift import TargetShift

    text = notebook_text([TargetShift])
    assert "class TargetShift(Rule)" in text

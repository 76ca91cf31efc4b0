"""Units of brought code: what is loaded, and how every error names file and line."""

from __future__ import annotations

import inspect
import sys
import traceback

import pytest

from creditgrid.core.errors import CodeError
from creditgrid.core.units import brought
from creditgrid.core.units.brought import load, place_in_code, place_of_unit
from creditgrid.core.units.code import sha256_of
from creditgrid.core.units.known import installed

RULE = '''
"""A rule."""
from creditgrid.core.units.rule import Rule


class {name}(Rule):
    """Twice the credit."""

    name = "{called}"

    def output_gradient(self, branch, credit):
        raise ValueError("not today")
'''


def rule(name: str = "Twice", called: str = "twice") -> bytes:
    return RULE.format(name=name, called=called).encode()


def test_the_units_of_a_file_are_loaded_once_and_know_where_they_are_written() -> None:
    files = {"my_rule.py": rule()}
    (unit,) = load(files)
    assert load(files)[0] is unit
    assert (unit.name, unit.title()) == ("twice", "Twice the credit")
    assert str(place_of_unit(unit)) == "my_rule.py:6"
    assert "class Twice(Rule)" in inspect.getsource(unit)
    units = installed().with_brought([unit], sha256_of(files))
    assert units.rule("twice") is unit
    assert (units.brought, units.code) == (frozenset([unit]), sha256_of(files))


def test_an_error_names_the_innermost_line_of_the_code() -> None:
    (unit,) = load({"my_rule.py": rule()})
    with pytest.raises(ValueError, match="not today") as caught:
        unit().output_gradient(None, None)
    assert place_in_code(caught.value) == "my_rule.py:12 in output_gradient"
    assert 'raise ValueError("not today")' in "".join(traceback.format_exception(caught.value))
    assert place_in_code(ValueError("elsewhere")) is None


def test_two_versions_of_a_file_live_in_one_process() -> None:
    (one,), (other,) = load({"m.py": rule()}), load({"m.py": rule() + b"# changed\n"})
    assert one is not other
    assert one.__module__ != other.__module__


def test_a_folder_is_a_package_whose_files_import_each_other() -> None:
    shared = b"from creditgrid.core.units.rule import Rule\n\nclass Base(Rule):\n    '''A base without a name.'''\n"
    own = b"from ..shared import Base\n\nclass Mine(Base):\n    '''Mine.'''\n    name = 'mine'\n"
    files = {"__init__.py": b"", "shared.py": shared, "rules/mine.py": own, "rules/other.py": rule("Other", "other")}
    assert [unit.name for unit in load(files)] == ["mine", "other"]


def test_decorated_functions_are_units() -> None:
    text = """
from creditgrid.core.units.decorators import rule
from pydantic import Field

@rule
def damped(branch, credit, damping: float = Field(0.5, ge=0, description="Damping, dimensionless.")):
    "Damped."
    return credit * damping
"""
    (unit,) = load({"mine.py": text.encode()})
    assert (unit.name, str(place_of_unit(unit))) == ("damped", "mine.py:5")


def test_what_the_code_imports_from_elsewhere_is_not_its_unit() -> None:
    text = b"from creditgrid.core.methods.vec import Vec\nfrom creditgrid.core.units.method import Method\n" + rule()
    assert [unit.name for unit in load({"m.py": text})] == ["twice"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"x = 1\nraise ValueError('no')\n", "m.py:2: ValueError: no"),
        (b"def f():\n    1 / 0\n\n\nf()\n", "m.py:2: ZeroDivisionError: division by zero"),
        (b"x = (\n", "m.py:1: SyntaxError: '(' was never closed"),
        (b"x = 1\x00\n", "m.py:1: "),
        (b"import sys\nsys.exit(3)\n", "m.py:2: the file ends its process (SystemExit: 3)"),
        (b"\nimport no_such_package.part\n", "m.py:2: the package 'no_such_package' is not installed here: install it"),
        (b"from .other import x\n", "m.py:1: there is no file other.py in the code"),
        (b"from m import x\n", "m.py:1: there is no package 'm': the files of a code import each other as in"),
        (b"x = 1\n", "m.py:1: the code defines no unit: write a subclass of Method"),
        (rule() + rule("Other"), "m.py:18: the rule 'twice' is defined at m.py:6 as well: rename one"),
        (rule() + rule(called="other"), "m.py:18: Twice is defined at m.py:6 as well: rename one"),
        (rule(called="Not A Name"), "m.py:6: Twice needs a name in lower_case_with_underscores"),
        (rule().replace(b'    name = "twice"', b""), "m.py:6: Twice needs a name"),
        (b"class E(Exception):\n    def __str__(self):\n        raise E\n\nraise E\n", "m.py:5: E: an error without a"),
    ],
)
def test_what_cannot_be_loaded_names_file_and_line(text: bytes, said: str) -> None:
    before = set(sys.modules), len(sys.meta_path)
    with pytest.raises(CodeError) as caught:
        load({"m.py": text})
    assert str(caught.value).startswith(said)
    assert {name for name in set(sys.modules) - before[0] if name.startswith(brought.PACKAGE)} == set()
    assert len(sys.meta_path) == before[1]


def test_a_process_keeps_a_bounded_number_of_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brought, "MOST_LOADED", 2)
    units = [load({"m.py": rule() + b"#" * n})[0] for n in range(4)]
    assert [unit.__module__.rpartition(".")[0] in sys.modules for unit in units] == [False, False, True, True]
    assert units[0]().version == 1

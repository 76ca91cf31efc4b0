"""Units that are written in a notebook, as the file that is sent: their source, and imports of what it uses.

What a unit uses of the notebook itself (a value, a function, a class, a variable of the function around it) does not go
along, and is refused with its name.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import linecache
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from creditgrid.core.errors import CodeError
from creditgrid.core.units.unit import Unit

NAME = "notebook.py"
ADVICE = "move it into the class or function, or write both to a file and give its path"


@dataclass(frozen=True)
class _Written:
    """A unit as it is written: its name, its source, and the names that it can see."""

    name: str
    source: str
    namespace: Mapping[str, Any]
    futures: int


def notebook_text(objects: Sequence[object]) -> str:
    """The text of a file that defines these units.

    Raises:
        CodeError: one is no unit, its source is not there, or it uses something that does not go along.
    """
    units = [_unit(each) for each in objects]
    ordered = sorted(units, key=lambda unit: sum(other in unit.__mro__ for other in units))  # bases first
    written = [_written(unit) for unit in ordered]
    own = {each.name for each in written}
    imports: dict[str, str] = {}
    for each in written:
        for name in sorted(_globals(_evaluated(each)) - own):
            statement = _import(each, name)
            if statement is None:
                continue
            if imports.setdefault(name, statement) != statement:
                raise CodeError(f"{each.name} uses another {name} than the other units: rename one of them")
    futures = ["from __future__ import annotations", ""] if any(_future(each) for each in written) else []
    head = "\n".join(['"""Sent from a notebook."""', "", *futures, *imports.values()])
    return "\n\n\n".join([head, *(each.source.strip("\n") for each in written)]) + "\n"


def _unit(found: object) -> type[Unit]:
    if isinstance(found, type) and issubclass(found, Unit):
        return found
    raise CodeError(
        f"{getattr(found, '__name__', repr(found)):.80} is no unit: give a subclass of Method, Rule, Network, Dataset "
        "or Measurement, a function with @rule, @dataset or @measurement, or the path of a file"
    )


def _written(unit: type[Unit]) -> _Written:
    functions = list(_functions(unit))
    for function in functions:
        file = function.__code__.co_filename
        lines = linecache.getlines(file, function.__globals__)
        source = _definition("".join(lines), unit.__name__, function.__code__.co_firstlineno)
        if source is None:  # one that pydantic has made
            continue
        free = [name for each in functions if each.__code__.co_filename == file for name in each.__code__.co_freevars]
        if captured := [name for name in free if name != "__class__"]:
            raise CodeError(
                f"{unit.__name__} uses {captured[0]}, a variable of the function in which it is written, which does "
                f"not go along: {ADVICE}"
            )
        return _Written(unit.__name__, source, function.__globals__, function.__code__.co_flags)
    raise CodeError(f"the source of {unit.__name__} is not there: write it to a file and give its path")


def _functions(unit: type[Unit]) -> Iterator[FunctionType]:
    """The functions that the author has written in the unit; of a decorated one, the function."""
    own = vars(unit)
    wrapped = own.get("__wrapped__")
    for value in [wrapped] if wrapped is not None else own.values():
        inner: Any = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        if isinstance(inner, FunctionType):
            yield inner


def _definition(text: str, name: str, line: int) -> str | None:
    """The class or function of this name around a line, with its decorators."""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # a cell with magic commands; its other lines are Python
        text = "".join("\n" if part.lstrip().startswith(("%", "!")) else part for part in text.splitlines(True))
        try:
            tree = ast.parse(text)
        except SyntaxError:
            return None
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first <= line <= (node.end_lineno or first):
                return textwrap.dedent("".join(text.splitlines(True)[first - 1 : node.end_lineno]))
    return None


def _evaluated(written: _Written) -> str:
    """The source without what Python does not evaluate: annotations of functions, where annotations stay text."""
    if not _future(written):
        return written.source
    tree = ast.parse(written.source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    return ast.unparse(tree)


def _globals(source: str) -> set[str]:
    """The names that a text uses and does not define."""
    found: set[str] = set()
    tables = [symtable.symtable(source, NAME, "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == "module"
        found |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if (symbol.is_referenced() or symbol.is_declared_global())
            and (symbol.is_global() or (top and not symbol.is_assigned()))
        }
    return found


def _import(written: _Written, name: str) -> str | None:
    """The statement that imports what the name stands for; None for a builtin."""
    if name not in written.namespace:
        if hasattr(builtins, name) or name in ("__name__", "__file__", "__doc__"):
            return None
        raise CodeError(f"{written.name} uses {name}, which is not defined: import it in the notebook, or correct it")
    value = written.namespace[name]
    if isinstance(value, ModuleType):
        if value.__name__ != "__main__" and value.__spec__ is not None and not _is_local(value):
            plain = value.__name__ == name
            return f"import {name}" if plain else f"import {value.__name__} as {name}"
        raise CodeError(
            f"{written.name} uses {name}, a module of this folder, which does not go along: put both into a folder and "
            "give its path"
        )
    module = getattr(value, "__module__", None)
    called = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    home = sys.modules.get(module) if isinstance(module, str) and module != "__main__" else None
    if home is not None and isinstance(called, str) and getattr(home, called, None) is value and not _is_local(home):
        return f"from {module} import {called}" + ("" if called == name else f" as {name}")
    raise CodeError(f"{written.name} uses {name}, {_kind(value)} of the notebook, which does not go along: {ADVICE}")


def _is_local(module: ModuleType) -> bool:
    """Whether the module is a file of the current folder, so that workers do not have it."""
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] == "creditgrid":
        return False
    place = Path(file).absolute()
    installed = {"site-packages", "dist-packages"} & set(place.parts) or place.is_relative_to(sys.base_prefix)
    if installed or not place.is_relative_to(Path.cwd()):
        return False
    return module.__name__.partition(".")[0] not in packages_distributions()  # installed from its source


def _kind(value: object) -> str:
    if isinstance(value, type):
        return "a class"
    return "a function" if isinstance(value, Callable) else "a value"  # type: ignore[arg-type]


def _future(written: _Written) -> bool:
    return bool(written.futures & __future__.annotations.compiler_flag)

"""Units of brought code: its files become modules of one package, which are imported from memory.

The package is named after the content, so two versions of a file can be loaded in one process. Every module is
imported. Units are the classes and decorated functions that these modules define.
"""

from __future__ import annotations

import ast
import importlib
import linecache
import re
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import CodeType, ModuleType

from creditgrid.core.errors import CodeError, PluginError
from creditgrid.core.experiment import Experiment
from creditgrid.core.task import Inputs, Task
from creditgrid.core.units.code import Files, checked, from_arrays, sha256_of, text
from creditgrid.core.units.known import Units, group_of, installed
from creditgrid.core.units.source import Place, place_of, place_of_error
from creditgrid.core.units.unit import Unit, unfit_unit

PACKAGE = "creditgrid_code_"
MOST_LOADED = 32
"""Codes that a process keeps; the one that was not used for the longest time is dropped."""
LONGEST_MESSAGE = 500
_FILE = re.compile(r"code-[0-9a-f]{16}/(.+)")

_loaded: OrderedDict[str, tuple[_Modules, Sequence[type[Unit]]]] = OrderedDict()
_units: OrderedDict[str, Units] = OrderedDict()  # by the key of the artifact that holds the code
_lock = threading.RLock()


class NoUnit(CodeError):
    """The code defines no unit."""


def load(files: Files, sha256: str | None = None) -> Sequence[type[Unit]]:
    """The units that the files define, in the order of paths and lines. Files are imported once a process.

    Args:
        files: the code.
        sha256: its identity, if it is known.

    Raises:
        CodeError: a file cannot be imported, a unit cannot be used, two have one name, or there is none. The message
            starts with the file and the line.
    """
    sha256 = sha256 or sha256_of(files)
    with _lock:
        if sha256 not in _loaded:
            modules = _Modules(checked(files), sha256)
            sys.meta_path.append(modules)
            try:
                units = modules.units()
            except BaseException:
                modules.forget()
                raise
            _loaded[sha256] = modules, units
        _loaded.move_to_end(sha256)
        while len(_loaded) > MOST_LOADED:
            _, (oldest, _) = _loaded.popitem(last=False)
            oldest.forget()
        return _loaded[sha256][1]


def experiments(files: Files) -> Sequence[Experiment]:
    """The experiments that the files define, for their check. A sweep cannot bring one: it is part of a package.

    Raises:
        CodeError: a file cannot be imported.
    """
    modules = _Modules(checked(files), sha256_of(files))
    sys.meta_path.append(modules)
    return modules.experiments()


def units_of(task: Task, inputs: Inputs) -> Units:
    """The units that a task may choose: those installed, and those of the code that it depends on.

    Raises:
        CodeError: the code cannot be used here.
    """
    key = task.parents.get("code")
    if key is None:
        return installed()
    with _lock:
        if key not in _units:  # a call may have thousands of tasks
            files = from_arrays(inputs[key])
            sha256 = sha256_of(files)
            try:
                found = installed().with_brought(load(files, sha256), sha256)
            except PluginError as error:
                raise error if isinstance(error, CodeError) else CodeError(str(error)) from error
            while len(_units) >= MOST_LOADED:
                _units.popitem(last=False)
            _units[key] = found
        return _units[key]


def shown(file: str) -> str:
    """The path of a file of brought code as its author knows it; any other path as it is."""
    found = _FILE.fullmatch(file)
    return file if found is None else found[1]


def is_brought(file: str) -> bool:
    """Whether a frame's or a class's file is one of brought code."""
    return _FILE.fullmatch(file) is not None


def place_in_code(error: BaseException) -> str | None:
    """The innermost line of brought code that an error has passed through, such as ``my_method.py:31 in credit``."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        for frame in reversed(traceback.extract_tb(found.__traceback__)):
            if _FILE.fullmatch(frame.filename):
                return f"{shown(frame.filename)}:{frame.lineno} in {frame.name}"
        found = found.__cause__ or found.__context__
    return None


def place_of_unit(unit: type[Unit]) -> Place | None:
    """Where a unit is written, in the words of its author."""
    found = place_of(unit)
    return None if found is None else Place(shown(found.file), found.line)


class _Modules(MetaPathFinder, Loader):
    """The modules of one code; finds and loads them when they are imported."""

    def __init__(self, files: Files, sha256: str) -> None:
        self._package = f"{PACKAGE}{sha256[:16]}"
        self._folder = f"code-{sha256[:16]}"
        self._texts = {self._name(path): (path, text(path, content)) for path, content in files.items()}
        self._folders = {name.rpartition(".")[0] for name in self._texts} | {self._package}
        for name in list(self._folders):
            parts = name.split(".")
            self._folders |= {".".join(parts[:end]) for end in range(1, len(parts))}

    # -- importing ---------------------------------------------------------------------------------------------------

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        if fullname in self._texts or fullname in self._folders:
            return spec_from_loader(fullname, self, origin=self._file(fullname), is_package=fullname in self._folders)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:  # noqa: ARG002 (the usual one)
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if name not in self._texts:
            return
        file, source = self._file(name), self._texts[name][1]
        module.__file__ = file
        # Tracebacks and inspect show the source.
        linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
        code: CodeType = compile(source, file, "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 (the code that the process was asked to load)

    def get_source(self, fullname: str) -> str | None:
        """The text of a module; `inspect` asks for it."""
        return self._texts[fullname][1] if fullname in self._texts else None

    def forget(self) -> None:
        """Undo the imports. Classes that are in use stay usable."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in self._texts.keys() | self._folders:
            sys.modules.pop(name, None)
            linecache.cache.pop(self._file(name), None)

    def _name(self, path: str) -> str:
        steps = path.removesuffix(".py").split("/")
        return ".".join([self._package, *(steps[:-1] if steps[-1] == "__init__" else steps)])

    def _file(self, name: str) -> str:
        return f"{self._folder}/{self._texts[name][0]}" if name in self._texts else self._folder

    # -- units -------------------------------------------------------------------------------------------------------

    def units(self) -> Sequence[type[Unit]]:
        """See `load`."""
        for name in sorted(self._texts):
            self._import(name)
        classes = list(dict.fromkeys(self._defined()))
        named = [unit for unit in classes if isinstance(getattr(unit, "name", None), str)]
        bases = {base for unit in named for base in unit.__mro__[1:]}
        for unit in classes:
            if unit in bases and unit not in named:
                continue
            if why := unfit_unit(unit):
                raise CodeError(f"{self._place(unit)}: {why}")
        if not named:
            raise NoUnit(
                f"{next(iter(self._texts.values()))[0]}:1: the code defines no unit: write a subclass of Method, Rule, "
                "Network, Dataset or Measurement at the top level of a file"
            )
        first: dict[tuple[str, str], type[Unit]] = {}
        for unit in named:
            before = first.setdefault((group_of(unit), unit.name), unit)
            if before is not unit:
                group = group_of(unit).removesuffix("s")
                raise CodeError(
                    f"{self._place(unit)}: the {group} {unit.name!r} is defined at {self._place(before)} as well: "
                    "rename one of them"
                )
        return named

    def experiments(self) -> Sequence[Experiment]:
        """See `experiments`."""
        for name in sorted(self._texts):
            self._import(name)
        values = [value for name in self._texts for value in vars(sys.modules[name]).values()]
        found = [value for value in values if isinstance(value, Experiment)]
        return [value for number, value in enumerate(found) if value not in found[:number]]

    def _import(self, name: str) -> None:
        try:
            importlib.import_module(name)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # the code may raise anything, SystemExit too: the author reads where and what
            raise CodeError(self._described(error, self._texts[name][0])) from error

    def _described(self, error: BaseException, path: str) -> str:
        found = place_of_error(error, *(self._file(name) for name in self._texts))
        place = f"{path}:1" if found is None else str(Place(shown(found.file), found.line))
        if isinstance(error, SystemExit):
            return f"{place}: the file ends its process (SystemExit: {error.code}): units are imported, so leave it out"
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            return f"{place}: {self._missing(error.name)}"
        return f"{place}: {message_of(error)}"

    def _missing(self, name: str) -> str:
        if name.startswith(self._package):
            wanted = name.removeprefix(self._package).lstrip(".").replace(".", "/")
            return f"there is no file {wanted}.py in the code: send the folder that holds it"
        top = name.partition(".")[0]
        if f"{self._package}.{top}" in self._texts or f"{self._package}.{top}" in self._folders:
            return f"there is no package {top!r}: the files of a code import each other as in `from .{top} import …`"
        return (
            f"the package {top!r} is not installed here: install it where the service and its workers run, or do "
            "without it"
        )

    def _defined(self) -> Iterator[type[Unit]]:
        for name, (path, source) in self._texts.items():
            found = [value for value in vars(sys.modules[name]).values() if self._is_own(value, name)]
            lines = _definitions(source)
            for unit in found:
                if len(places := lines.get(unit.__qualname__, [])) > 1:
                    raise CodeError(
                        f"{path}:{places[1]}: {unit.__qualname__} is defined at {path}:{places[0]} as well: rename "
                        "one of them"
                    )
            yield from sorted(found, key=lambda unit: lines.get(unit.__qualname__, [0])[0])

    @staticmethod
    def _is_own(value: object, module: str) -> bool:
        return isinstance(value, type) and issubclass(value, Unit) and value.__module__ == module

    @staticmethod
    def _place(unit: type[Unit]) -> str:
        return str(place_of_unit(unit) or unit.__name__)


def _definitions(source: str) -> dict[str, list[int]]:
    """The lines of the classes and functions at the top level of a file, by name."""
    found: dict[str, list[int]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found.setdefault(node.name, []).append(line)
    return found


def message_of(error: BaseException) -> str:
    """One line that says what an error is; a CreditGrid error speaks for itself."""
    try:
        said = (error.msg if isinstance(error, SyntaxError) else str(error)).strip()
    except Exception:  # an error of the code may not be able to say what it is
        said = "an error without a text"
    first = said.splitlines()[0][:LONGEST_MESSAGE] if said else ""
    if isinstance(error, PluginError):
        return first
    return f"{type(error).__name__}: {first}".removesuffix(": ")

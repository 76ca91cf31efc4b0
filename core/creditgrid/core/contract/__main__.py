"""One target checked in a process of its own: ``python -m creditgrid.core.contract [OPTIONS] FD TARGET``.

TARGET is the name of an installed unit or experiment, ``all`` for all of them, or with ``--code`` the path of a file or
folder. FD is the descriptor of a ``multiprocessing`` connection to the parent process. Its messages are JSON objects,
each with a ``type``:

===========  =========================================================================================================
``loading``  the target is being imported
``unit``     ``unit``, ``group``, ``title``, ``file``, ``line``: the checks of this unit follow
``started``  ``check``: this check is next
``result``   a ``Result``
``failed``   ``error``: the code cannot be used; the text starts with file and line where they are known
``refused``  ``error``: there is nothing of this name or path
``done``     all is checked
===========  =========================================================================================================

The process is limited (`limits`): its parent stops it when it says nothing for too long.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from creditgrid.core.contract.checks import Result
from creditgrid.core.contract.limits import at_most, confine
from creditgrid.core.contract.suite import check_experiment, check_unit
from creditgrid.core.errors import CodeError, PluginError, did_you_mean
from creditgrid.core.experiment import Experiment
from creditgrid.core.experiments.code_registry import registry_with_brought
from creditgrid.core.experiments.registry import Registry, registry, usable
from creditgrid.core.units.brought import NoUnit, experiments, load, place_of_unit
from creditgrid.core.units.code import read, sha256_of
from creditgrid.core.units.known import BASES, group_of, installed
from creditgrid.core.units.unit import Unit

ALL = "all"

Send: TypeAlias = Callable[..., None]
Target: TypeAlias = type[Unit] | Experiment


class Unknown(Exception):
    """There is nothing of this name."""


def main(arguments: Sequence[str]) -> int:
    """Check the target, report on it, and return 0; what fails is in the messages."""
    parser = argparse.ArgumentParser(prog="python -m creditgrid.core.contract")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--code", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0, help="that an import or a check may take")
    parser.add_argument("messages", type=int)
    parser.add_argument("target")
    options = parser.parse_args(arguments)
    os.set_inheritable(options.messages, False)
    with Connection(options.messages, readable=False) as messages:

        def send(message: str, **fields: Any) -> None:
            messages.send_bytes(json.dumps({"type": message, **fields}).encode())

        send("loading")
        try:
            targets = _code(options.target, options.seconds) if options.code else list(_named(options.target))
        except Unknown as error:
            send("refused", error=str(error))
            return 0
        except (CodeError, PluginError) as error:
            send("failed", error=str(error))
            return 0
        for target in targets:
            _check(target, options.quick, options.seconds, send)
        send("done")
    return 0


def _code(path: str, seconds: float) -> Sequence[Target]:
    """The units of a file or folder, or its experiments; from here on the process is limited."""
    try:
        files = read(Path(path))
    except CodeError:
        if not Path(path).exists():
            raise Unknown(f"there is no file or folder {path}") from None
        raise
    confine()
    with at_most(seconds):
        try:
            units = load(files)
        except NoUnit:
            if found := experiments(files):
                return [_beside_others(experiment) for experiment in found]
            raise
    registry_with_brought(units, sha256_of(files))
    return units


def _beside_others(experiment: Experiment) -> Experiment:
    """The experiment of a file with the units that exist; one of its name that is installed is not counted."""
    known = registry()
    others = {name: other for name, other in known.experiments.items() if name != experiment.name}
    kinds = {kind.name for other in others.values() for kind in known.kinds_of(other).values()}
    return usable(
        experiment, Registry(others, {n: kind for n, kind in known.kinds.items() if n in kinds}, {}, known.units)
    )


def _named(name: str) -> Iterator[Target]:
    known = installed()
    found: list[Target] = [unit for group in BASES for unit in known.of(group).values() if name in (unit.name, ALL)]
    registered = registry().experiments
    found += [experiment for experiment in registered.values() if name in (experiment.name, ALL)]
    if found:
        yield from found
        return
    for (group, broken), why in known.broken.items():
        if broken == name:
            raise PluginError(f"the {group[:-1]} {name!r} cannot be used: {why}")
    if name in registry().broken:
        raise PluginError(f"the experiment {name!r} cannot be used: {registry().broken[name]}")
    names = sorted({*registered, *(unit for group in BASES for unit in known.of(group))})
    raise Unknown(
        f"there is no file, unit or experiment {name!r}{did_you_mean(name, names)}; there are {', '.join(names)}"
    )


def _check(target: Target, quick: bool, seconds: float, send: Send) -> None:
    with at_most(seconds) as restart:

        def starting(check: str) -> None:
            restart()
            send("started", check=check)

        results: Iterator[Result]
        if isinstance(target, Experiment):
            send("unit", unit=target.name, group="experiments", title=target.title, file=None, line=None)
            results = check_experiment(target, quick=quick, starting=starting)
        else:
            file, line = place_of_unit(target) or (None, None)
            send("unit", unit=target.name, group=group_of(target), title=target.title(), file=file, line=line)
            results = check_unit(target, quick=quick, starting=starting)
        for result in results:
            send("result", **result._asdict() | {"findings": [finding._asdict() for finding in result.findings]})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

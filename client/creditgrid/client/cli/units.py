"""Commands for the author of a unit or an experiment: a skeleton, and the contract."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from creditgrid.client.cli.options import OutputOption, console, note, print_json
from creditgrid.client.errors import BadSetting

Kind = Literal["method", "rule", "network", "dataset", "measurement", "experiment"]


def check(
    target: Annotated[
        str, typer.Argument(metavar="FILE|FOLDER|NAME", help="Your code, or an installed unit or experiment; or all.")
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Only what a service checks before it takes code.")] = False,
    output: OutputOption = "table",
) -> None:
    """Hold a method, rule, network, dataset, measurement or experiment to what the service relies on."""
    from creditgrid.client.checking import CheckedUnit, Checking, summary
    from creditgrid.client.display.untrusted_text import harmless
    from creditgrid.client.local_service import ended_by_signals

    checking = Checking(target)
    with ended_by_signals():
        for item in checking.run(quick=quick):
            if output == "table":
                text = _heading(item) if isinstance(item, CheckedUnit) else _line(item)
                console().print(harmless(text), soft_wrap=True)
    if output == "json":
        print_json(
            {
                "target": target,
                "passed": checking.passed,
                "error": checking.error,
                "printed": checking.printed,
                "units": [vars(unit) for unit in checking.units],
            }
        )
    else:
        if not checking.passed and checking.printed.strip():
            note(harmless(f"the end of what the code printed:\n{checking.printed.rstrip()[-2000:]}"))
        if checking.error is not None:
            note(harmless(f"error: {checking.error}"))
        passed, failed, skipped = summary(checking.units)
        left = f", {skipped} not done" if skipped else ""
        note(f"{passed} checks passed, {failed} failed{left}")
    if not checking.passed:
        raise typer.Exit(1)


def _heading(unit: Any) -> str:
    where = f"  {unit.file}:{unit.line}" if unit.file else ""
    return f"{unit.group.removesuffix('s')} {unit.unit}: {unit.title}{where}"


def _line(result: dict[str, Any]) -> str:
    if result["skipped"] is not None:
        return f"  –       {result['check']} ({result['skipped']})"
    word = "FAILED" if result["findings"] else "ok"
    lines = [f"  {word:<6}  {result['check']}  {result['seconds']:.2f} s"]
    for finding in result["findings"]:
        where = f"{finding['file']}:{finding['line']}: " if finding["file"] else ""
        lines += [f"          {where}{finding['problem']}", f"          {finding['why']}"]
    return "\n".join(lines)


def new(
    kind: Annotated[Kind, typer.Argument(help="What to write.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name in specs, in lower_case_with_underscores.")],
) -> None:
    """Write NAME.py, a commented skeleton that passes its checks."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise BadSetting(f"{name!r} is not a name: use lower-case letters, digits and _, such as my_{kind}")
    file = Path(f"{name}.py")
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(skeleton(kind, name))
    except FileExistsError:
        raise BadSetting(f"{file} exists already: choose another name, or remove it") from None
    note(f"wrote {file}; next:")
    note(f"  creditgrid check {file}")
    if kind == "experiment":
        note("  an experiment is part of a package: the file says how it is registered")
    else:
        note(f"  creditgrid run spec.yaml --code {file}      # on this machine")
        note(f"  creditgrid submit spec.yaml --code {file}   # on a service that takes code")
        note(f"  {_USED[kind].format(name=name)}")


_USED: dict[str, str] = {
    "method": "in the spec: axes: {{method: [{name}, dfa, oracle_bp], …}}",
    "rule": "in the spec: axes: {{rule: [{name}, inner_product], …}} of linesearch or exploitability",
    "network": "in the spec: fixed: {{network: {name}, …}}",
    "dataset": "in the spec: fixed: {{dataset: {name}, …}}",
    "measurement": "in the spec: measurements: [{name}]",
}


def skeleton(kind: Kind, name: str) -> str:
    """The text of a new unit's or experiment's file."""
    text = resources.files("creditgrid.client.skeletons").joinpath(f"{kind}.py").read_text(encoding="utf-8")
    camel = "".join(part.capitalize() for part in name.split("_"))
    return text.replace("MyUnit", camel or "Unit").replace("my_unit", name)

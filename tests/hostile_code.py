"""Files that are broken or mean harm, and what their author must be told, with file and line where there is one."""

from __future__ import annotations

from typing import NamedTuple


class Hostile(NamedTuple):
    """One code: its files, what the error says (a pattern), and whether it endangers the process that loads it."""

    name: str
    files: dict[str, bytes]
    said: str
    dangerous: bool = False


def _file(text: str) -> dict[str, bytes]:
    return {"mine.py": text.encode()}


METHOD = """from typing import Any, ClassVar
import numpy as np, torch, random
from creditgrid.core.units.method import Method
from pydantic import Field, field_validator

class Mine(Method):
    "Mine."
    name: ClassVar = "mine"
    {field}
    def credit(self, forward, fitted):
        credit = torch.ones_like(forward.states)
        {line}
        return credit
"""


def _credit(line: str, field: str = "") -> dict[str, bytes]:
    return _file(METHOD.format(line=line, field=field or "size: ClassVar = 1"))


TWICE = """from creditgrid.core.units.decorators import rule

@rule
def mine(branch, credit):
    "One."
    return credit

class Other({base}):
    "Another."
    name = "mine"
"""
SHIPPED = METHOD.format(line="pass", field="size: ClassVar = 1").replace('"mine"', '"vec"')

HOSTILE = [
    Hostile("raises", _file("x = 1\nraise ValueError('no reason')\n"), r"mine\.py:2: ValueError: no reason"),
    Hostile("loops", _file("x = 1\nwhile True:\n    x += 1\n"), r"mine\.py:[23]: .*took longer than", True),
    Hostile("hungry", _file("x = 1\ny = bytearray(2 * 2**30)\n"), r"mine\.py:2: MemoryError", True),
    Hostile("forks", _file("import os\nwhile True:\n    os.fork()\n"), r"mine\.py:3: .*process", True),
    Hostile("spawns", _file("import subprocess\nsubprocess.run(['true'])\n"), r"mine\.py:2: .*process", True),
    Hostile("prints", _file("print('x' * 10**7)\nraise ValueError('at last')\n"), r"mine\.py:2: .*at last", True),
    Hostile("exits", _file("import sys\nsys.exit(3)\n"), r"mine\.py:2: .*SystemExit: 3"),
    Hostile("dies", _file("import os\nos._exit(0)\n"), r"(mine\.py|the code).* end", True),
    Hostile("closes", _file("import os\nos.closerange(0, 1000)\n"), r"(mine\.py|the code).* (end|closed)", True),
    Hostile("shapes", _credit("credit = credit[:, :1]"), r"mine\.py:10: mine: .*must|mine\.py:10: .*hidden states"),
    Hostile("nan", _credit("credit = credit * float('nan')"), r"mine\.py:10: .*not finite"),
    Hostile("type", _credit("credit = credit.double()"), r"mine\.py:10: .*float64"),
    Hostile("random", _credit("credit = credit * random.SystemRandom().random()"), r"mine\.py:6: .*two calls"),
    Hostile("global", _credit("np.random.seed(0); np.random.rand()"), r"mine\.py:6: .*global state of numpy.random"),
    Hostile("missing", _file("import os\nimport a_package_that_nobody_has\n"), r"mine\.py:2: the package 'a_package"),
    Hostile("twice", _file(TWICE.format(base="mine")), r"mine\.py:8: the rule 'mine' is defined at mine\.py:3 as well"),
    Hostile("syntax", _file("x = 1\ndef f(:\n"), r"mine\.py:2: SyntaxError"),
    Hostile("latin", {"mine.py": "x = 1\n# é\n".encode("latin-1")}, r"mine\.py:2: the byte 0xe9 is not UTF-8"),
    Hostile("shipped", _file(SHIPPED), r"mine\.py:6: the method 'vec' exists already"),
    Hostile("nothing", _file("x = 1\n"), r"mine\.py:1: the code defines no unit"),
    Hostile("plain", _credit("pass", "size: int = 1"), r"mine\.py:6: the parameter 'size' of mine needs a description"),
    Hostile(
        "validator",
        _credit(
            "pass", "size: int = Field(1, description='x')\n\n    @field_validator('size')\n    def f(cls, v): return v"
        ),
        r"mine\.py:6: Mine has validators",
    ),
    Hostile("large", {"mine.py": b"#" * (2**20 + 1)}, r"1,048,577 bytes"),
    Hostile("raises_later", _credit("raise KeyError('bias')"), r"mine\.py:12: .*KeyError"),
]

"""ARCHITECTURE.md is a map: each module is on it, and each place that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
ROOTS = ("core", "workers", "service", "client")
NAMES = set(re.findall(r"`([\w/<>.-]+)`", TEXT))
# Rooms whose modules the map sums up in one line.
SUMMED_UP = (
    "client/cli",
    "client/display",
    "client/plots",
    "client/reproduce",
    "client/skeletons",
    "service/api/routes",
    "service/ledger/migrations",
)


def place(name: str) -> Path:
    """The file or folder that ``service/ledger/tables`` and the like mean."""
    return ROOT / name.split("/", maxsplit=1)[0] / "creditgrid" / name


def modules() -> list[str]:
    found = [path.relative_to(ROOT / root / "creditgrid") for root in ROOTS for path in (ROOT / root).rglob("*.py")]
    return [
        str(path.with_suffix("")) for path in found if not path.stem.startswith("__") and "examples" not in path.parts
    ]


@pytest.mark.parametrize("module", modules())
def test_every_module_is_on_the_map(module: str) -> None:
    if not module.startswith(SUMMED_UP):
        room, name = module.rsplit("/", 1)
        line = next(line for line in TEXT.splitlines() if line.startswith(f"| `{room}/`"))
        assert f"`{name}`" in line, f"the line of {room}/ in ARCHITECTURE.md does not name {name}"


ROOMS = re.findall(r"^\| `([a-z/]+)/` \| (.*) \|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize(("room", "modules"), ROOMS, ids=[room for room, _ in ROOMS])
def test_every_module_that_a_room_lists_is_in_it(room: str, modules: str) -> None:
    for name in re.findall(r"`(\w+)`", modules):
        found = place(f"{room}/{name}")
        assert found.is_dir() or found.with_suffix(".py").is_file(), f"ARCHITECTURE.md lists {name} in {room}/"


@pytest.mark.parametrize("name", sorted(name for name in NAMES if name.split("/")[0] in ROOTS and "<" not in name))
def test_every_place_on_the_map_exists(name: str) -> None:
    found = place(name.rstrip("/"))
    assert found.is_dir() or found.with_suffix(".py").is_file(), f"ARCHITECTURE.md names {name}, which is not there"


@pytest.mark.parametrize(
    "name", sorted(n for n in NAMES if re.fullmatch(r"(api|planning|scheduling|ledger|results|reading)/[\w/]+", n))
)
def test_every_place_named_from_within_service_exists(name: str) -> None:
    found = place(f"service/{name}")
    assert found.is_dir() or found.with_suffix(".py").is_file(), f"ARCHITECTURE.md names {name}, which is not there"

"""Refusing a spec takes time in proportion to its length, whatever is wrong with it."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable
from functools import partial

import pytest
from attack.bodies import bodies, content_type, growing, largest
from creditgrid_noop import EXPERIMENT as NOOP

from creditgrid.core.datasets import resolve
from creditgrid.core.errors import SpecError
from creditgrid.core.experiments.registry import registry
from creditgrid.core.naming import resolve_datasets
from creditgrid.core.spec.extension import extended, in_extension, parse_extension
from creditgrid.core.spec.model import MAX_RULES, MEASURE, parse
from creditgrid.core.spec.text import parse_json, parse_text
from creditgrid.core.spec.validation import validate
from creditgrid.core.wire import Extension

STEEPEST = 1.35
SIZES = (80_000, 640_000)
FLOOR_S = 0.05
"""A shorter time for the larger size is no sign of growth."""
KINDS = growing()


def check(name: str, body: bytes) -> str | None:
    """What is wrong with the body, found by all that comes before the naming of tasks; None for a sound one."""
    try:
        document = parse_text(body) if content_type(name) == "application/yaml" else parse_json(body)
        spec = parse(document)
        experiment = registry().experiment(spec.experiment)
        kinds = registry().kinds_of(experiment).keys() - {experiment.measure.name}
        grid = validate(spec, experiment, kinds | {MEASURE})
        for _ in grid.cells(resolve_datasets(grid, resolve)):
            pass
    except SpecError as error:
        return str(error)
    return None


def seconds(run: Callable[[], object], rounds: int = 3) -> float:
    """The least CPU time of some rounds."""
    found = math.inf
    gc.disable()  # it takes turns that depend on what other tests left
    try:
        for _ in range(rounds):
            started = time.process_time()
            run()
            found = min(found, time.process_time() - started)
    finally:
        gc.enable()
    return found


@pytest.mark.parametrize("name", KINDS)
def test_time_grows_no_faster_than_the_body(name: str) -> None:
    small, large = (largest(KINDS[name], size) for size in SIZES)
    after = seconds(lambda: check(name, large), rounds=2)
    if after < FLOOR_S:
        return
    exponent = math.log(after / seconds(lambda: check(name, small))) / math.log(len(large) / len(small))
    assert exponent < STEEPEST, f"{len(large):,} bytes in {after:.3f} s"


@pytest.fixture(scope="module")
def pass_over_the_largest() -> float:
    """The time of reading 4 MiB of JSON and looking at each value once."""
    text = json.dumps([[number] for number in range(400_000)])
    return seconds(lambda: sum(len(item) for item in json.loads(text)))


def _note(details: list[str | None], name: str, body: bytes) -> None:
    details.append(check(name, body))


@pytest.mark.slow
def test_every_body_is_answered_within_some_passes_over_the_largest(pass_over_the_largest: float) -> None:
    slow = {}
    for name, body in bodies().items():
        details: list[str | None] = []
        taken = seconds(partial(_note, details, name, body), rounds=1)
        if details[0] is not None:
            assert len(details[0]) < 20_000, name
            if taken > 25 * pass_over_the_largest:
                slow[name] = taken
    assert not slow, f"a pass takes {pass_over_the_largest:.3f} s"


def test_cells_are_matched_with_all_rules_at_once() -> None:
    def expand(rules: int) -> float:
        spec = parse(
            {
                "name": "n",
                "experiment": "noop",
                "axes": {"x": {"range": [20_000]}, "behaviour": ["ok", "nan"]},
                "exclude": [{"x": n, "behaviour": "nan"} for n in range(rules)],
            }
        )
        grid = validate(spec, NOOP, ["noop"])
        assert sum(1 for _ in grid.cells()) == 40_000 - rules
        return seconds(lambda: sum(1 for _ in grid.cells()), rounds=2)

    assert expand(MAX_RULES) < 10 * expand(1)  # comparing each cell with each rule took 400 times as long


def test_faults_of_an_extension_are_placed_in_one_pass() -> None:
    document = {"name": "n", "experiment": "noop", "axes": {"x": {"range": [200_000]}}}
    extension = parse_extension({"axes": {"x": ["a"] * 100_000}})

    def refuse() -> None:
        with pytest.raises(SpecError) as caught:
            validate(parse(extended(document, extension)), NOOP, ["noop"])
        found = in_extension(caught.value, document, extension)
        assert found.faults[0].pointer == "/axes/x/0"

    once = seconds(lambda: extended(document, extension), rounds=2)
    assert seconds(refuse, rounds=1) < 15 * once


@pytest.mark.parametrize(
    "document",
    [
        {f"key{i}": 1 for i in range(300_000)},
        {"axes": {f"axis{i}": [1] for i in range(200_000)}},
        {"include": [0] * 900_000},
    ],
)
def test_a_refused_extension_names_some_faults(document: dict[str, object]) -> None:
    with pytest.raises(SpecError) as caught:
        parse_extension(document)
    assert len(caught.value.faults) <= 21


def test_an_extension_of_unknown_axes_names_some_of_them() -> None:
    extension = Extension(axes={f"axis{i}": [1] for i in range(100)})
    with pytest.raises(SpecError) as caught:
        extended({"axes": {"x": [1]}}, extension)
    assert len(caught.value.faults) == 21

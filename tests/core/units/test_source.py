"""Where units and errors are written."""

from __future__ import annotations

import pytest

from creditgrid.core.methods.vec import Vec
from creditgrid.core.units.decorators import rule
from creditgrid.core.units.source import place_of, place_of_error


@rule
def here(branch, credit):
    """A rule."""
    raise ValueError("here")


def test_a_class_and_a_decorated_function_are_found() -> None:
    place = place_of(Vec)
    assert place is not None
    assert place.file.endswith("vec.py")
    assert str(place) == f"{place.file}:{place.line}"
    found = place_of(here)
    assert found is not None
    assert found.file == __file__
    assert place_of(3) is None

    class Below(here):
        """A subclass of a rule that is a function."""

    below = place_of(Below)
    assert below is not None
    assert below.line > found.line


def test_an_error_is_found_at_its_innermost_line_of_the_file() -> None:
    with pytest.raises(ValueError, match="here") as caught:
        here().output_gradient(None, None)
    place, start = place_of_error(caught.value, __file__), place_of(here)
    assert place is not None
    assert start is not None
    assert place.line == start.line + 3
    assert place_of_error(caught.value, "another.py") is None
    with pytest.raises(SyntaxError) as broken:
        compile("x = 1\ny = (", "mine.py", "exec")
    assert place_of_error(broken.value, "mine.py") == ("mine.py", 2)

"""YAML and JSON text of specs: what is read, and what is refused with which place."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.core.errors import SpecError
from creditgrid.core.spec import text as spec_text
from creditgrid.core.spec.text import MAX_DEPTH, MAX_YAML_BYTES, parse_json, parse_text
from creditgrid.core.wire import MAX_SPEC_BYTES


def refusal(data: bytes) -> str:
    with pytest.raises(SpecError) as caught:
        parse_text(data)
    assert len(caught.value.faults) == 1
    return caught.value.faults[0].detail


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("42", 42),
        ("+7", 7),
        ("012", 12),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("'1e-5'", "1e-5"),
        ('"true"', "true"),
        ("on", "on"),
        ("Off", "Off"),
        ("yes", "yes"),
        ("no", "no"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("1:30", "1:30"),
        ("-", None),
        ("e_T", "e_T"),
        ("./images", "./images"),
        ("|\n  one\n  two\n", "one\ntwo\n"),
    ],
)
def test_unquoted_words_follow_yaml_1_2(text: str, value: object) -> None:
    read = parse_text(f"key: {text}\n".encode()) if text != "-" else {"key": parse_text(b"key:\n- \n")["key"][0]}
    assert read == {"key": value}
    assert type(read["key"]) is type(value)


def test_parse_text_accepts_nan() -> None:
    assert math.isnan(parse_text(b"eta: .nan")["eta"])
    assert math.isnan(parse_text(b'{"eta": NaN}')["eta"])


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b'{"eta": NaN}', "NaN is not a JSON number"),
        (b'{"eta": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"eta": 1,\n}', "not JSON: line 2, column 1"),
        (b"eta: 1", "not JSON: line 1, column 1"),
        (b"", "not JSON"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b"[" + b"9" * 5000 + b"]", "thousands of digits"),
        (b'{"eta": "\xff"}', "byte 0xff at offset 9 "),
    ],
)
def test_parse_json_reads_strict_json_only(data: bytes, complaint: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_json(data)
    assert complaint in caught.value.faults[0].detail


def test_a_whole_spec_is_read_as_written() -> None:
    text = """\
# a comment
name: phase-6.5a
experiment: linesearch
fixed: {dataset: cifar10, num_blocks: 4}
axes:
  seed: [42, 43]
  eta: {logspace: [1e-5, 1.0e-2, 7]}
exclude:
  - {method: dfa, norm_mode: raw}
"""
    assert parse_text(text.encode()) == {
        "name": "phase-6.5a",
        "experiment": "linesearch",
        "fixed": {"dataset": "cifar10", "num_blocks": 4},
        "axes": {"seed": [42, 43], "eta": {"logspace": [1e-5, 1e-2, 7]}},
        "exclude": [{"method": "dfa", "norm_mode": "raw"}],
    }


def test_the_python_loader_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"a: [1e-5, on, {b: 'x'}]\nc: |\n  text\n"
    fast = parse_text(text)
    monkeypatch.setattr(spec_text, "_LOADER", yaml.SafeLoader)
    assert parse_text(text) == fast == {"a": [1e-5, "on", {"b": "x"}], "c": "text\n"}


def test_empty_text_is_none_and_a_byte_order_mark_is_skipped() -> None:
    assert parse_text(b"") is None
    assert parse_text(b"# nothing\n") is None
    assert parse_text(b"\xef\xbb\xbfname: x") == {"name": "x"}


# Without digits, since PyYAML writes YAML 1.1, where the string 1e5 needs no quotes.
words = st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc", "Nd")))
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


@given(documents)
def test_json_documents_come_back(document: object) -> None:
    assert parse_text(json.dumps([document]).encode()) == [document]
    assert parse_text(json.dumps([document], ensure_ascii=False, indent=2).encode()) == [document]


@given(documents)
def test_yaml_documents_come_back(document: object) -> None:
    dumper = type("Plain", (yaml.SafeDumper,), {"ignore_aliases": lambda self, data: True})
    text = yaml.dump(document, Dumper=dumper, allow_unicode=True)
    assert parse_text(text.encode()) == document


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"a: 1\nb: &big [1]\nc: *big", ["line 2, column 4", "anchors and aliases"]),
        (b"a: *big", ["line 1, column 4", "anchors and aliases"]),
        (b"a: !!python/object:os.system x", ["line 1, column 4", "tags", "python/object"]),
        (b"a: 1\nb:\n  c: 1\n  c: 2", ["line 4, column 3", "'c' is given twice", "line 3"]),
        (b'{"a": {"b": 1, "b": 2}}', ["'b' is given twice"]),
        (b"1: x", ["line 1, column 1", "a key must be a string", "got 1"]),
        (b"null: x", ["a key must be a string"]),
        (b"? [a, b]\n: x", ["a key must be a string"]),
        (b"a: 1\n---\nb: 2", ["line 2", "second document"]),
        (b"a: 1\nb: [1,\n2", ["line 4, column 1", "starts on line 2"]),
        (b"a:\n\t- b", ["line 2, column 1", "cannot start any token"]),
        (b"a: 1\n b: 2", ["line 2", "not YAML"]),
        (b"a: \x00", ["not YAML", "control characters"]),
        (b'{"a": "\\ud800"}', ["half a character"]),
        (b"a: " + b"9" * 5000, ["line 1, column 4", "thousands of digits"]),
        (b"[" + b"9" * 5000 + b"]", ["thousands of digits"]),
        (b"a: 0x1" + b"f" * 5000, ["line 1, column 4", "thousands of digits"]),
        (b"{a: 0, 0x1" + b"f" * 5000 + b": 1}", ["line 1, column 8", "thousands of digits"]),
        (b"0o1" + b"7" * 900 + b": 1", ["line 1, column 1", "a key must be a string"]),
    ],
)
def test_refused_with_the_place(data: bytes, parts: list[str]) -> None:
    detail = refusal(data)
    for part in parts:
        assert part in detail


def test_other_encodings_are_refused_with_the_offset() -> None:
    assert "byte 0xff at offset 0 " in refusal("name: x".encode("utf-16"))
    assert "byte 0xe9 at offset 9 " in refusal("name: caf\u00e9".encode("latin-1"))


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b"[ ", b" ]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 200, 50_000])
def test_deep_nesting_is_refused(opening: bytes, closing: bytes, depth: int) -> None:
    assert "nested deeper" in refusal(opening * depth + b"1" + closing * depth)
    assert "nested deeper" in refusal(opening * depth)
    assert parse_text(opening * MAX_DEPTH + b"1" + closing * MAX_DEPTH) is not None


def test_length_is_bounded() -> None:
    fits = b"# " + b"x" * (MAX_YAML_BYTES - 2)
    assert parse_text(fits) is None
    assert "1,048,577 bytes of YAML, more than the 1,048,576 that are read: send JSON" in refusal(fits + b"x")
    json_fits = b'"' + b"x" * (MAX_SPEC_BYTES - 4) + b'"'
    assert parse_text(b"[" + json_fits + b"]") is not None
    assert "4,194,305 bytes" in refusal(b"[" + json_fits + b" ]")


def test_long_json_with_a_slip_is_not_called_yaml() -> None:
    assert "not JSON: line 2, column" in refusal(b"[" + b"1," * 700_000 + b"\n]")


def test_tag_directives_are_refused_before_libyaml_compares_them() -> None:
    assert "%TAG directives are not accepted" in refusal(b"%TAG !a! tag:x\n--- a")


@given(st.binary(max_size=200) | st.text("{}[]:,-?&*!|>'\"%@#\n\t aA0.e~<=").map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(SpecError):  # any other exception is a bug
        parse_text(data)


def test_the_number_of_lists_and_objects_is_bounded() -> None:
    assert len(parse_text(b"[" + b"{}," * 200_000 + b"1]")) == 200_001
    assert "more than 250,000 lists and objects" in refusal(b"[" + b"[]," * 250_000 + b"1]")

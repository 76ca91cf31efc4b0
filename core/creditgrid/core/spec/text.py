"""The text of a sweep spec, YAML 1.2 or JSON, read into plain values: dicts, lists, strings, numbers, booleans, None.

Whatever makes a spec ambiguous or dangerous is refused, in YAML with its line and column: anchors and aliases (a few
bytes can become gigabytes), tags, duplicate keys, keys that are not strings, more than one document, deep nesting.
Unquoted YAML words follow the core schema of YAML 1.2: ``1e-5`` is a float; ``on``, ``no`` and dates are strings. The
values are checked later, in ``spec.validation``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from creditgrid.core.errors import Fault, SpecError
from creditgrid.core.spec.faults import shown
from creditgrid.core.wire import MAX_SPEC_BYTES

MAX_DEPTH = 32
"""Lists and mappings inside each other; a spec needs five."""
MAX_HOLDERS = 250_000
"""Opening brackets: a spec has one for each included cell, and few others. Many small lists take long to read."""
MAX_YAML_BYTES = 2**20
"""A longer YAML document is refused: YAML takes ten times as long to read as JSON."""
TOO_DEEP = f"lists and mappings are nested deeper than {MAX_DEPTH} levels"
TOO_MANY_DIGITS = "a whole number has thousands of digits"

# libyaml is ten times faster; platforms without it use the Python loader. Both yield the same events.
_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_TAG_DIRECTIVE = re.compile(r"^%TAG", re.MULTILINE)
_INT = re.compile(r"[-+]?[0-9]+")
_BASE_INT = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_HOLDS = (list, dict)
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True, slots=True)
class SpecText:
    """The text of a spec as it arrived, and how to read it; with ``yaml`` false it must be JSON."""

    data: bytes
    yaml: bool = False

    @classmethod
    def of(cls, document: Any) -> SpecText:
        """The text of a document that was read before."""
        return cls(json.dumps(document).encode())

    def parse(self) -> Any:
        """The document; raises as ``parse_text`` and ``parse_json`` do."""
        return parse_text(self.data) if self.yaml else parse_json(self.data)


def parse_text(data: bytes) -> Any:
    """The value that a YAML or JSON document holds; None for an empty one. NaN and infinities are accepted.

    Takes up to a second for the largest documents: call it off an event loop.

    Raises:
        SpecError: for text that is too long, not UTF-8, not YAML, or refused as above.
    """
    text = _decoded(data)
    long = len(data) > MAX_YAML_BYTES
    if text.lstrip()[:1] in ("{", "["):
        try:
            return _parse_json(text)
        except json.JSONDecodeError as error:
            if long:
                raise _not_json(error) from error
        except RecursionError as error:
            raise _refusal(TOO_DEEP) from error
        # It may be a YAML flow mapping. If it is not, YAML's complaint has a line and a column too.
    if long:
        limits = f"more than the {MAX_YAML_BYTES:,} that are read: send JSON, which may have {MAX_SPEC_BYTES:,}"
        raise _refusal(f"the spec is {len(data):,} bytes of YAML, {limits}")
    return _checked(_parse_yaml(text), text)


def parse_json(data: bytes) -> Any:
    """The value that a JSON document holds. NaN and infinities, which are not JSON, are refused.

    Raises:
        SpecError: for text that is too long, not UTF-8, not JSON, or refused as above.
    """
    text = _decoded(data)
    try:
        return _parse_json(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _not_json(error) from error
    except RecursionError as error:
        raise _refusal(TOO_DEEP) from error


def _decoded(data: bytes) -> str:
    if len(data) > MAX_SPEC_BYTES:
        raise _refusal(f"the spec is {len(data):,} bytes long, more than the {MAX_SPEC_BYTES:,} that are read")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(
            f"byte 0x{data[error.start]:02x} at offset {error.start:,} is not UTF-8: encode the spec as UTF-8"
        ) from error
    if text.count("[") + text.count("{") > MAX_HOLDERS:
        raise _refusal(f"the spec has more than {MAX_HOLDERS:,} lists and objects: generate axes instead")
    return text


def _parse_json(text: str, **options: Any) -> Any:
    try:
        return _checked(json.loads(text, object_pairs_hook=_object, **options), text)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # Python reads no integers of thousands of digits
        raise _refusal(TOO_MANY_DIGITS) from error


def _not_json(error: json.JSONDecodeError) -> SpecError:
    return _refusal(f"not JSON: line {error.lineno}, column {error.colno}: {error.msg}")


def _refusal(detail: str) -> SpecError:
    return SpecError([Fault(detail, "")])


def _refuse_constant(name: str) -> NoReturn:
    raise _refusal(f"{name} is not a JSON number, and a spec has only finite numbers")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise _refusal(f"the key {shown(twice)} is given twice in one object: keep one of them")
    return found


def _checked(value: Any, text: str) -> Any:
    """The same value, read from ``text``, if it is not nested too deeply and JSON can carry it."""
    level, depth = [item for item in (value,) if isinstance(item, _HOLDS)], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _refusal(TOO_DEEP)
        children = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for inner in children for child in inner if isinstance(child, _HOLDS)]
    if "\\" in text:  # only escapes write half a character
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise _refusal(f"{half!r} is half a character: JSON escapes it as a surrogate pair") from error
    return value


@dataclass(slots=True)
class _Open:
    """An unfinished list or mapping; ``key`` is set while a mapping waits for its value."""

    value: list[Any] | dict[str, Any]
    key: str | None = None
    lines: dict[str, int] = field(default_factory=dict)  # the line of each key

    def add(self, item: Any, event: Any) -> None:
        if isinstance(self.value, list):
            self.value.append(item)
        elif self.key is not None:
            self.value[self.key] = item
            self.key = None
        elif not isinstance(item, str):
            raise _at(event, f"a key must be a string; got {shown(item)}: put it in quotes")
        elif item in self.value:
            first = self.lines[item]
            raise _at(event, f"the key {shown(item)} is given twice (first on line {first}): keep one of them")
        else:
            self.key = item
            self.lines[item] = event.start_mark.line + 1


def _parse_yaml(text: str) -> Any:
    if _TAG_DIRECTIVE.search(text):  # libyaml compares each of these with all before it
        raise _refusal("%TAG directives are not accepted: write the plain value, in quotes for a string")
    top: list[Any] = []
    stack = [_Open(top)]
    documents = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.ScalarEvent):  # most are
                _refuse_features(event)
                stack[-1].add(_scalar(event), event)
            elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                _refuse_features(event)
                value: list[Any] | dict[str, Any] = [] if isinstance(event, yaml.SequenceStartEvent) else {}
                stack[-1].add(value, event)
                stack.append(_Open(value))
                if len(stack) > MAX_DEPTH + 1:
                    raise _at(event, TOO_DEEP)
            elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                stack.pop()
            elif isinstance(event, yaml.AliasEvent):
                _refuse_features(event)
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _at(event, "a second document starts here: give one sweep spec at a time")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        start = f" that starts on line {error.context_mark.line + 1}" if error.context_mark else ""
        context = f" ({error.context}{start})" if error.context else ""
        raise _refusal(f"not YAML: {where}{error.problem or 'unreadable'}{context}") from error
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise _refusal(f"not YAML: {str(error).splitlines()[0]}") from error
    return top[0] if top else None


def _at(event: Any, detail: str) -> SpecError:
    mark = event.start_mark
    return _refusal(f"line {mark.line + 1}, column {mark.column + 1}: {detail}")


def _refuse_features(event: yaml.NodeEvent) -> None:
    if event.anchor is not None:  # of an alias too
        name = f"{event.anchor:.80}"
        raise _at(event, f"anchors and aliases (&{name}, *{name}) are not accepted: write the value out")
    if (tag := getattr(event, "tag", None)) is not None:  # an alias has none
        raise _at(event, f"tags ({tag:.80}) are not accepted: write the plain value, in quotes for a string")


def _scalar(event: yaml.ScalarEvent) -> Any:
    text: str = event.value
    if event.style:  # quoted, or a block of text
        return text
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    try:
        if _INT.fullmatch(text):
            return int(text)
        if _BASE_INT.fullmatch(text):
            number = int(text, 0)
            return int(str(number))  # Python writes no integers of thousands of digits, but reads hexadecimal ones
        if _FLOAT.fullmatch(text):
            return float(text)
    except ValueError as error:
        raise _at(event, TOO_MANY_DIGITS) from error
    if match := _NOT_FINITE.fullmatch(text):
        return float("nan") if match[3] else float(f"{match[1]}inf")
    return text

"""Bodies that no person would send: hostile specs, as JSON and YAML, in fixed sizes and growing.

The end of a name says the content type: ``.json`` or ``.yaml``. ``growing()`` has a generator for each way in which
checking a spec could take more time than its size explains; each makes a body of about ``n`` repeated parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

FIXED = {"dataset": "digits", "method": "dfa", "eta": 0.1}
FULL: dict[str, Any] = {"name": "attack", "experiment": "linesearch", "fixed": FIXED}
LARGEST = 4 * 2**20 - 4096
"""Bytes that the large bodies come close to."""
LARGEST_YAML = 2**20 - 4096
PARAMETERS = ("seed", "num_blocks", "d_hidden", "batch_size", "train_epochs", "lr", "fit_lr", "weight_decay", "w2_std")


def content_type(name: str) -> str:
    """The content type of the body with this name."""
    return "application/yaml" if name.endswith(".yaml") else "application/json"


def bodies() -> dict[str, bytes]:
    """Bodies by name: the small ones, and the largest of every growing kind."""
    found = small_bodies()
    for name, make in growing().items():
        stem, kind = name.rsplit(".", 1)
        found[f"{stem} × largest.{kind}"] = largest(make, LARGEST_YAML if kind == "yaml" else LARGEST)
    return found


def small_bodies() -> dict[str, bytes]:
    """Bodies by name: every growing kind in two small sizes, values that fit nowhere, and malformed text."""
    found: dict[str, bytes] = {}
    for name, make in growing().items():
        stem, kind = name.rsplit(".", 1)
        for number in (1, 300):
            found[f"{stem} × {number}.{kind}"] = make(number)
    for place, build in PLACES.items():
        for what, value in VALUES.items():
            found[f"{what} as {place}.json"] = json.dumps(build(value)).encode()
    return found | TEXTS


def largest(make: Callable[[int], bytes], size: int = LARGEST) -> bytes:
    """The body of this kind with close to ``size`` bytes."""
    number = 10_000
    for _ in range(3):  # numbers get longer
        number = max(1, int(number * size / len(make(number)) * 0.99))
    return make(number)


def growing() -> dict[str, Callable[[int], bytes]]:
    """For each name a function that makes a body of about this many repeated parts."""
    return {
        "duplicate keys at the top.json": lambda n: _object("k", n, lambda i: "k"),
        "pairs of duplicate keys.json": lambda n: _object("k", n, lambda i: f"k{i // 2}"),
        "one duplicate key at the end.json": lambda n: _object("k", n, lambda i: f"k{min(i, n - 2)}"),
        "duplicate keys in fixed.json": lambda n: b'{"fixed":' + _object("k", n, lambda i: "seed") + b"}",
        "objects with duplicate keys.json": lambda n: b"[" + b",".join([b'{"a":1}'] * n) + b',{"a":1,"a":1}]',
        "unknown keys.json": lambda n: _object("k", n, lambda i: f"key{i}"),
        "unknown keys near known ones.json": lambda n: _object("k", n, lambda i: f"experiment{i}"),
        "unknown axes.json": lambda n: _spec(axes={f"axis{i}": [1] for i in range(n)}),
        "unknown axes near known ones.json": lambda n: _spec(axes={f"seed{i}": [1] for i in range(n)}),
        "unknown fixed names.json": lambda n: _spec(fixed={f"name{i}": 1 for i in range(n)}),
        "unknown zip names.json": lambda n: _spec(axes={"seed": [1]}, zip=[[f"name{i}" for i in range(n)]]),
        "unknown axes and zip names.json": lambda n: _spec(
            axes={f"axis{i}": [1] for i in range(n)}, zip=[[f"axes{i}" for i in range(n)]]
        ),
        "zip groups.json": lambda n: _spec(axes={"seed": [1], "lr": [0.1]}, zip=[["seed", "lr"]] * n),
        "zip groups of unknown names.json": lambda n: _spec(axes={"seed": [1]}, zip=[[f"a{i}", "b"] for i in range(n)]),
        "a large zip group.json": lambda n: _spec(
            axes={f"axis{i}": [1] for i in range(n)}, zip=[[f"axis{i}" for i in range(n)]]
        ),
        "one name in a large zip group.json": lambda n: _spec(axes={"seed": [1]}, zip=[["seed"] * n]),
        "zip groups that are numbers.json": lambda n: _spec(axes={"seed": [1]}, zip=[list(range(n))]),
        "values of a wrong type.json": lambda n: _spec(axes={"seed": ["x"] * n}),
        "a wrong value at the end.json": lambda n: _spec(axes={"seed": [*range(n), "x"]}),
        "wrong values here and there.json": lambda n: _spec(
            axes={"seed": [i if i % (n // 10 + 2) else "x" for i in range(n + 2)]}
        ),
        "a repeated value.json": lambda n: _spec(axes={"seed": [*range(n), 0]}),
        "a repeated float.json": lambda n: _spec(axes={"lr": [*(1 + i / 2**20 for i in range(n)), 1]}),
        "zipped axes with a repeated point.json": lambda n: _spec(
            axes={"seed": [*range(n), 0], "d_hidden": [*range(2, n + 2), 2]}, zip=[["seed", "d_hidden"]]
        ),
        "zipped axes of two lengths.json": lambda n: _spec(
            axes={"seed": list(range(n)), "lr": [0.5] * (n + 1)}, zip=[["seed", "lr"]]
        ),
        "too many cells.json": lambda n: _spec(axes={name: list(range(1, n + 10)) for name in PARAMETERS}),
        "whole numbers beyond 64 bits.json": lambda n: _spec(axes={"seed": [2**63 + i for i in range(n)]}),
        "numbers of thousands of digits.json": lambda n: _spec(axes={"seed": [10**4299] * (n // 300 + 1)}),
        "too many digits.json": lambda n: b'{"seed":' + b"9" * (5000 + n) + b"}",
        "long strings.json": lambda n: _spec(axes={"method": ["x" * n]}),
        "strings where one is expected.json": lambda n: _spec(axes={"method": [f"m{i}" for i in range(n)]}),
        "a long name.json": lambda n: json.dumps(FULL | {"name": "x" * (n + 200)}).encode(),
        "a long experiment.json": lambda n: json.dumps(FULL | {"experiment": "x" * n}).encode(),
        "a long parameter name.json": lambda n: _spec(fixed={"x" * (n + 64): 1}),
        "a long axis name.json": lambda n: _spec(axes={"x" * (n + 64): [1]}, zip=[["y" * n, "z" * n]]),
        "a long task kind.json": lambda n: _spec(resources={"x" * n: {"cpu": 1}}),
        "names that look alike.json": lambda n: _spec(axes={"a" * (i % 60 + 1) + str(i): [1] for i in range(n)}),
        "exclude rules.json": lambda n: _spec(axes={"num_blocks": [1]}, exclude=[{"seed": i} for i in range(n)]),
        "exclude rules of unknown names.json": lambda n: _spec(
            axes={"seed": [1]}, exclude=[{f"name{i}": i} for i in range(n)]
        ),
        "an exclude rule with many names.json": lambda n: _spec(
            axes={"seed": [1]}, exclude=[{f"name{i}": i for i in range(n)}]
        ),
        "empty exclude rules.json": lambda n: _spec(axes={"seed": [1]}, exclude=[{}] * n),
        "included cells, the last wrong.json": lambda n: _spec(
            include=[*({"seed": i} for i in range(n)), {"seed": "x"}]
        ),
        "included cells of unknown names.json": lambda n: _spec(include=[{f"name{i}": 1} for i in range(n)]),
        "included cells that lack a parameter.json": lambda n: json.dumps(
            FULL | {"fixed": {}, "include": [{"seed": i} for i in range(n)]}
        ).encode(),
        "included cells that are no objects.json": lambda n: _spec(include=[0] * n),
        "an included cell with many names.json": lambda n: _spec(include=[{f"name{i}": 1 for i in range(n)}]),
        "included cells that do not fit.json": lambda n: _spec(
            include=[{"seed": i, "random_targets": True} for i in range(n)]
        ),
        "values that do not fit.json": lambda n: _spec(axes={"random_targets": [True], "seed": list(range(n))}),
        "datasets that do not exist.json": lambda n: _spec(
            fixed={"method": "dfa", "eta": 0.1}, axes={"dataset": [f"/none/{i}" for i in range(n)]}
        ),
        "resources of unknown kinds.json": lambda n: _spec(resources={f"kind{i}": {"cpu": 1} for i in range(n)}),
        "resources that are no objects.json": lambda n: _spec(resources={f"kind{i}": 1 for i in range(n)}),
        "resources of unknown names.json": lambda n: _spec(resources={"fit": {f"name{i}": 1 for i in range(n)}}),
        "timeouts of unknown kinds.json": lambda n: _spec(timeout_s={f"kind{i}": 1 for i in range(n)}),
        "negative timeouts.json": lambda n: _spec(timeout_s={f"kind{i}": -1 for i in range(n)}),
        "a generator with many names.json": lambda n: _spec(axes={"seed": {f"range{i}": [1] for i in range(n)}}),
        "a generator with many arguments.json": lambda n: _spec(axes={"seed": {"range": [1] * (n + 4)}}),
        "a generator of text.json": lambda n: _spec(axes={"seed": {"range": ["x"] * n}}),
        "an axis that is text.json": lambda n: _spec(axes={"seed": "x" * n}),
        "deep lists.json": lambda n: b"[" * n + b"]" * n,
        "deep objects.json": lambda n: b'{"a":' * n + b"1" + b"}" * n,
        "deep and unfinished.json": lambda n: b"[" * n,
        "wide lists of lists.json": lambda n: b"[" + b"[[]]," * n + b"0]",
        "wide lists of objects.json": lambda n: b"[" + b'{"a":{}},' * n + b"0]",
        "a list of numbers.json": lambda n: b"[" + b"1," * n + b"1]",
        "escapes.json": lambda n: b'{"a":"' + b"\\u00e9" * n + b'"}',
        "half a character at the end.json": lambda n: b'{"a":"' + b"x" * n + b'\\ud800"}',
        "not UTF-8 at the end.json": lambda n: b'{"a":"' + b"x" * n + b'\xff"}',
        "spaces.json": lambda n: b" " * n + b"{",
        "unfinished text.json": lambda n: b'{"a":"' + b"x" * n,
        "duplicate keys.yaml": lambda n: b"k: 1\n" * (n + 1),
        "one duplicate key at the end.yaml": lambda n: b"".join(b"k%d: 1\n" % min(i, n - 1) for i in range(n + 1)),
        "unknown keys.yaml": lambda n: b"".join(b"key%d: 1\n" % i for i in range(n)),
        "unknown axes.yaml": lambda n: HEAD + b"axes:\n" + b"".join(b"  axis%d: [1]\n" % i for i in range(n)),
        "unknown axes and zip names.yaml": lambda n: (
            HEAD
            + b"axes:\n"
            + b"".join(b"  axis%d: [1]\n" % i for i in range(n))
            + b"zip:\n  - ["
            + b", ".join(b"axes%d" % i for i in range(n))
            + b"]\n"
        ),
        "values of a wrong type.yaml": lambda n: HEAD + b"axes:\n  seed:\n" + b"  - x\n" * n,
        "included cells, the last wrong.yaml": lambda n: HEAD + b"include:\n" + b"- {seed: 1}\n" * n + b"- {seed: x}\n",
        "a flow list.yaml": lambda n: b"[" + b"1," * n + b"1]",
        "flow pairs.yaml": lambda n: b"- [" + b"a: b," * n + b"]",
        "empty flow lists.yaml": lambda n: b"- [" + b"[]," * n + b"]",
        "empty entries.yaml": lambda n: b"-\n" * n,
        "deep flow lists.yaml": lambda n: b"- " + b"[" * n,
        "deep block lists.yaml": lambda n: b"- " * n,
        "deep questions.yaml": lambda n: b"? " * n,
        "tag directives.yaml": lambda n: b"".join(b"%%TAG !t%d! t\n" % i for i in range(n)) + b"--- a",
        "other directives.yaml": lambda n: b"%X a\n" * n + b"--- a",
        "anchors.yaml": lambda n: b"[" + b"&a 1," * n + b"]",
        "aliases of aliases.yaml": lambda n: b"a: &a [x]\n" + b"".join(b"b%d: [*a,*a]\n" % i for i in range(n)),
        "tags.yaml": lambda n: b"- !!python/object:os.system x\n" * n,
        "documents.yaml": lambda n: b"---\na: 1\n" * (n + 1),
        "a folded text.yaml": lambda n: b"a: >\n" + b" x\n\n" * n,
        "a plain text of many lines.yaml": lambda n: b"a:\n" + b"  x\n" * n,
        "a long key.yaml": lambda n: b"a" * n + b": 1",
        "a number of many digits.yaml": lambda n: b"a: " + b"9" * (n + 5000),
        "a hexadecimal number of many digits.yaml": lambda n: b"a: 0x" + b"f" * (n + 5000),
        "almost a number.yaml": lambda n: b"a: " + b"1" * n + b"x",
        "comments.yaml": lambda n: b"#\n" * n,
        "wide indents.yaml": lambda n: b"a:\n" + b" " * n + b"b: 1\n c: 1\n",
        "tabs.yaml": lambda n: b"a:\n" + b"\t" * n + b"b: 1\n",
    }


HEAD = b"name: attack\nexperiment: linesearch\nfixed: {dataset: digits, method: dfa, eta: 0.1}\n"


def _object(_name: str, number: int, key: Callable[[int], str]) -> bytes:
    return b"{" + b",".join(b'"%s":1' % key(i).encode() for i in range(number + 1)) + b"}"


def _spec(**parts: Any) -> bytes:
    return json.dumps(FULL | parts).encode()


VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "a number": 1.5,
    "a negative number": -1,
    "2^63": 2**63,
    "10^400": 10**400,
    "text": "x",
    "empty text": "",
    "a NUL": "\0",
    "an override": "\u202e",
    "a path": "../../etc/passwd",
    "SQL": "'; DROP TABLE sweeps; --",
    "markup": "<script>alert(1)</script>",
    "an empty list": [],
    "lists": [[[]]],
    "an empty object": {},
    "an object": {"a": {"b": None}},
    "a dunder": {"__class__": {"__init__": 1}},
}
"""Values for places that expect another."""
PLACES: dict[str, Callable[[Any], Any]] = {
    "the document": lambda value: value,
    "the name": lambda value: FULL | {"name": value},
    "the experiment": lambda value: FULL | {"experiment": value},
    "fixed": lambda value: FULL | {"fixed": value},
    "a fixed value": lambda value: FULL | {"fixed": FIXED | {"d_hidden": value}},
    "the dataset": lambda value: FULL | {"fixed": FIXED | {"dataset": value}},
    "axes": lambda value: FULL | {"axes": value or 1},
    "an axis": lambda value: FULL | {"axes": {"d_hidden": value}},
    "zip": lambda value: FULL | {"zip": [value]},
    "a rule": lambda value: FULL | {"exclude": [value]},
    "an included cell": lambda value: FULL | {"include": [value if value else 1]},
    "resources": lambda value: FULL | {"resources": {"fit": value if value is not None and value != {} else 1}},
    "retry": lambda value: FULL | {"retry": {"max": value}},
    "a time limit": lambda value: FULL | {"timeout_s": {"fit": value if not isinstance(value, float) else -1}},
    "a generator": lambda value: FULL | {"axes": {"lr": {"logspace": value}}},
    "a generator's argument": lambda value: FULL | {"axes": {"lr": {"logspace": [1, value, 3]}}},
}
"""Documents with a value in one place of a spec."""
TEXTS: dict[str, bytes] = {
    "nothing.json": b"",
    "nothing.yaml": b"",
    "a NUL.json": b"\0",
    "a NUL.yaml": b"a: \0",
    "a byte order mark.json": b"\xef\xbb\xbf",
    "UTF-16.json": "{}".encode("utf-16"),
    "UTF-16.yaml": "name: x".encode("utf-16"),
    "Latin-1.yaml": "name: caf\u00e9".encode("latin-1"),
    "NaN.json": b'{"name":NaN}',
    "Infinity.json": b'{"name":-Infinity}',
    "single quotes.json": b"{'name':'x'}",
    "a comment.json": b"{} // x",
    "a comma at the end.json": b'{"name":"x",}',
    "two documents.json": b"{}{}",
    "an exponent.json": b'{"fixed":{"lr":1e999999999}}',
    "a lone surrogate.json": b'{"name":"\\udfff"}',
    "a broken escape.json": b'{"name":"\\x41"}',
    "a tag.yaml": b"name: !!python/object/apply:os.system [id]",
    "a merge key.yaml": b"a: &a {b: 1}\nc:\n  <<: *a\n",
    "a bomb.yaml": b'a: &a ["x","x"]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n',
    "a list as a key.yaml": b"? [a, b]\n: 1\n",
    "a number as a key.yaml": b"1: x",
    "bad indentation.yaml": b"a: 1\n b: 2",
    "an unfinished flow.yaml": b"a: [1,\n2",
    "an unfinished quote.yaml": b'a: "x',
    "a directive alone.yaml": b"%YAML 9.9\n",
    "a billion values.json": _spec(axes={"seed": {"range": [10**9]}}),
    "a million zipped twice.json": _spec(
        axes={"seed": {"range": [10**6]}, "lr": {"linspace": [1, 2, 10**6]}, "w2_std": {"linspace": [1, 2, 10**6]}},
        zip=[["seed", "lr", "w2_std"]],
    ),
    "many generators.json": _spec(axes={name: {"range": [1, 10**6]} for name in PARAMETERS}, zip=[list(PARAMETERS)]),
    "a step too small.json": _spec(axes={"lr": {"range": [0, 1, 1e-300]}}),
    "a million with a wrong end.json": _spec(axes={"batch_size": {"range": [1, 10**6]}}),
    "a million with a wrong start.json": _spec(axes={"d_hidden": {"range": [10**6]}}),
    "a million of a wrong type.json": _spec(axes={"seed": {"linspace": [0, 1, 10**6]}}),
    "a million repeated.json": _spec(axes={"lr": {"linspace": [1, 1, 10**6]}}),
    "a million and a fault elsewhere.json": _spec(axes={"lr": {"linspace": [1, 2, 10**6]}, "seed": ["x"]}),
}
"""Malformed text, and short specs that ask for much."""

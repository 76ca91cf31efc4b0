"""Requests that Schemathesis generates from the service's own OpenAPI document, alone and chained by links.

The document is completed first: links from a sweep to all that can be asked of it, ids of sweeps in every state, and
the form of a small spec. Without a token, what it says of credentials is left out.
"""

from __future__ import annotations

import base64
import copy
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .sweeps import Sweeps
from .tally import Tally

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
ENDED = ("succeeded", "cached", "diverged", "skipped")
"""Sweeps whose event streams end."""
LIMIT_S = 5.0
"""An answer that takes longer falls short; a query and the import of a checkpoint have limits of their own."""
LEAST_S = 8
"""Seconds that Schemathesis gets at least: before its first request it reads the schema of each operation."""
LONG_S = 120.0
"""A shorter run leaves out the import of checkpoints, which starts a process each time; uploads are a corpus."""
SLOW = ("/v1/query", "/v1/checkpoints")
SETTINGS = """# The stream of an open sweep does not end, so no link leads there.
[[operations]]
include-path = "/v1/sweeps/{sweep}/events"
phases.stateful.enabled = false
"""
TOOL = Path(sys.executable).with_name("schemathesis")
STRING = {"type": "string"}


def attack(
    folder: Path,
    url: str,
    document: Mapping[str, Any],
    sweeps: Sweeps,
    seconds: float,
    seed: int,
    tally: Tally,
    token: str | None = None,
) -> None:
    """Run Schemathesis for ``seconds``: half of them request by request, half along links. Record what it finds."""
    with_token = token is not None
    folder.mkdir(parents=True)
    (folder / "openapi.json").write_text(json.dumps(completed(document, sweeps, with_token=with_token)))
    (folder / "schemathesis.toml").write_text(SETTINGS)
    checks = (*CHECKS, "ignored_auth") if with_token else CHECKS
    options = ["--url", url, "--seed", str(seed), "--checks", ",".join(checks)]
    options += ["--max-time", str(max(LEAST_S, round(seconds / 2))), "--request-timeout", "60"]
    options += ["--output-sanitize", "false", "--generation-database", "none", "--no-shrink", "--no-color"]
    options += ["--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off"]
    if with_token:
        options += ["--header", f"Authorization:Bearer {token}"]
    if seconds < LONG_S:
        options += ["--exclude-path", "/v1/checkpoints"]
    for corpus, phases in (("generated", "examples,coverage,fuzzing"), ("chained", "stateful")):
        report = folder / f"{corpus}.ndjson"
        command = [str(TOOL), "--config-file", "schemathesis.toml", "run", "openapi.json", "--phases", phases, *options]
        with (folder / f"{corpus}.txt").open("wb") as output:
            subprocess.run(
                [*command, "--report", "ndjson", "--report-ndjson-path", report.name],
                cwd=folder,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                check=False,
                timeout=seconds + 120,
            )
        name = f"{corpus}, with a token" if with_token else corpus
        if not (report.exists() and record(name, report, tally)):
            text = (folder / f"{corpus}.txt").read_text(errors="replace")
            tally.fell_short(name, "Schemathesis sent nothing", text[-1500:])


# -- the document -----------------------------------------------------------------------------------------------------


def completed(document: Mapping[str, Any], sweeps: Sweeps, *, with_token: bool) -> dict[str, Any]:
    """The OpenAPI document with links, ids and specs."""
    found: dict[str, Any] = copy.deepcopy(dict(document))
    ended = [sweeps.ids[state] for state in ENDED]
    spec, extension = spec_schema(), extension_schema()
    links = _links(found)
    for path, method, operation in operations(found):
        if path.endswith("/logs"):  # nor does that of an open task
            operation["parameters"] = [given for given in operation["parameters"] if given["name"] != "follow"]
        if not with_token:
            operation.pop("security", None)
        for parameter in operation.get("parameters", []):
            known = {"sweep": ended if path.endswith("/events") else list(sweeps.ids.values())}
            known["key"] = sweeps.tasks if "/tasks/" in path else sweeps.artifacts
            if parameter["in"] == "path" and (ids := known.get(parameter["name"])):
                parameter["schema"] = (
                    {"anyOf": [{"enum": ids}, STRING]} if not path.endswith("/events") else {"enum": ids}
                )
        if (path, method) in (("/v1/sweeps", "post"), ("/v1/plans", "post")):
            _replace_body(operation, spec)
        elif path.endswith("/extend"):
            _replace_body(operation, extension)
        if path.startswith("/v1/sweeps") and method == "post":
            for status, response in operation["responses"].items():
                if status.startswith("2"):
                    response["links"] = links
    return found


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and description of each operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in ("get", "post", "put", "patch", "delete"):
                yield path, method, operation


def _links(document: Mapping[str, Any]) -> dict[str, Any]:
    """From the answer with a sweep to each operation on a sweep."""
    return {
        f"{method}{path.rpartition('}')[2].replace('/', '-') or '-sweep'}": {
            "operationId": operation["operationId"],
            "parameters": {"sweep": "$response.body#/id"},
        }
        for path, method, operation in operations(document)
        if path.startswith("/v1/sweeps/{sweep}") and not path.endswith("/events")
    }


def _replace_body(operation: dict[str, Any], schema: Mapping[str, Any]) -> None:
    for content in operation["requestBody"]["content"].values():
        content["schema"] = schema


def spec_schema() -> dict[str, Any]:
    """Specs that are small, cheap and mostly sound."""
    numbers = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 10_000}}
    values = {**numbers, "minItems": 1, "maxItems": 4, "uniqueItems": True}
    generator = {
        "type": "object",
        "properties": {"range": {**numbers, "minItems": 1, "maxItems": 3}},
        "required": ["range"],
        "additionalProperties": False,
    }
    fixed = {
        "type": "object",
        "properties": {"behaviour": {"enum": ["ok", "nan", "raise"]}, "base": {"enum": ["none", "ok", "raise"]}},
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 40},
            "experiment": {"const": "noop"},
            "fixed": fixed,
            "axes": {
                "type": "object",
                "properties": {"x": {"anyOf": [values, generator]}, "group": {**values, "maxItems": 2}},
                "required": ["x"],
                "additionalProperties": False,
            },
            "retry": {"const": {"max": 0}},
            "priority": {"type": "integer", "minimum": -10, "maximum": 10},
            "fail_fast": {"type": "boolean"},
        },
        "required": ["name", "experiment", "axes"],
        "additionalProperties": False,
    }


def extension_schema() -> dict[str, Any]:
    """Extensions of such specs."""
    axes = {"type": "object", "properties": {"x": spec_schema()["properties"]["axes"]["properties"]["x"]}}
    return {
        "type": "object",
        "properties": {"axes": {**axes, "required": ["x"], "additionalProperties": False}},
        "required": ["axes"],
        "additionalProperties": False,
    }


# -- the report -------------------------------------------------------------------------------------------------------


def record(corpus: str, report: Path, tally: Tally) -> int:
    """Count the requests of a report and record what its checks found; returns how many requests there were."""
    count = 0
    seen: Counter[tuple[str, str]] = Counter()
    with report.open() as lines:
        for line in lines:
            event = json.loads(line)
            if "ScenarioFinished" not in event:
                continue
            recorder = event["ScenarioFinished"]["recorder"]
            for case, interaction in recorder.get("interactions", {}).items():
                count += 1
                request, response = interaction["request"], interaction.get("response")
                name = f"{request['method']} {request['uri']}"[:150]
                if response is None:
                    tally.attempt(corpus, name, "no answer", 0.0)
                    tally.fell_short(corpus, "no answer", f"{name} {_text(request.get('body'))[:200]}")
                    continue
                seconds = float(response["elapsed"])
                tally.attempt(corpus, name, response["status_code"], seconds)
                if seconds > LIMIT_S * tally.patience and not any(path in name for path in SLOW):
                    tally.fell_short(corpus, f"slower than {LIMIT_S:g} s", f"{name}: {seconds:.1f} s")
                for check in recorder.get("checks", {}).get(case, []):
                    if check["status"] == "success" or _is_allowed(check, request, response):
                        continue
                    kind = check["name"]
                    seen[kind, recorder["label"]] += 1
                    if seen[kind, recorder["label"]] == 1:  # once for each operation
                        tally.fell_short(corpus, kind, _shown(name, request, response, check))
    return count


def _is_allowed(check: Mapping[str, Any], request: Mapping[str, Any], response: Mapping[str, Any]) -> bool:
    """A busy service says when to come back; it may ignore what it does not know; our schema of specs is narrower."""
    if response["status_code"] == 503 and "retry-after" in response["headers"]:
        return True
    text = json.dumps(check)
    # Whatever a header or a query parameter holds is a string.
    text_only = "in header" in text or "if-none-match" in text
    unknown = (
        text_only
        or "x-schemathesis-unknown-property" in text
        or "additionalProperties" in text
        or "unknown" in text.lower()
    )
    ours = any(path in request["uri"] for path in ("/v1/plans", "/v1/sweeps"))
    return check["name"] == "negative_data_rejection" and (unknown or (ours and request["method"] == "POST"))


def _shown(name: str, request: Mapping[str, Any], response: Mapping[str, Any], check: Mapping[str, Any]) -> str:
    message = json.dumps(check.get("failure_info") or check.get("failure") or check)
    body = _text(request.get("body"))[:150]
    return f"{name} {body}: {response['status_code']} {_text(response.get('content'))[:100]}; {message[:400]}"


def _text(body: Any) -> str:
    if not body:
        return ""
    encoded = body.get("$base64", "") if isinstance(body, dict) else str(body)
    return base64.b64decode(encoded).decode(errors="replace") if isinstance(body, dict) else encoded

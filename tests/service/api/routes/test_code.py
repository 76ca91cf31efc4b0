"""Code over HTTP: sent, viewed, downloaded, refused."""

from __future__ import annotations

import pytest
from service_fakes import AppClient, Fakes

from creditgrid.core.wire import MAX_SPEC_BYTES
from creditgrid.service.codes import Codes
from creditgrid.service.planning.admission import Admission

RULE = '''from creditgrid.core.units.rule import Rule


class Half(Rule):
    """Half the credit; η."""

    name = "half"

    def output_gradient(self, branch, credit):
        return credit / 2 / credit.shape[-2]
'''
PYTHON = {"content-type": "text/x-python; charset=utf-8"}
JSON = {"content-type": "application/json"}


def send(client: AppClient, text: str = RULE, name: str = "half.py"):
    return client.request("POST", f"/v1/code?name={name}", content=text.encode(), headers=PYTHON)


def test_a_file_is_sent_once_viewed_and_downloaded(client: AppClient, fakes: Fakes) -> None:
    first, again = send(client), send(client)
    assert (first.status_code, again.status_code) == (201, 200), first.text
    view = first.json()
    assert again.json() == view
    assert first.headers["location"] == f"/v1/code/{view['sha256']}"
    assert [unit["name"] for unit in view["units"]] == ["half"]
    assert client.request("GET", first.headers["location"]).json() == view
    file = client.request("GET", f"{first.headers['location']}/files/half.py")
    assert (file.text, file.headers["content-type"]) == (RULE, "text/plain; charset=utf-8")
    assert fakes.audit.rows[-1][1:3] == ("code", view["sha256"])
    other = client.request("GET", f"{first.headers['location']}/files/other.py")
    assert (other.status_code, "it has half.py" in other.json()["detail"]) == (404, True)


def test_a_folder_is_sent_as_json(client: AppClient) -> None:
    files = {"rules/half.py": RULE, "__init__.py": ""}
    sent = client.request("POST", "/v1/code", json={"files": files})
    assert sent.status_code == 201, sent.text
    assert sent.json()["files"] == {"__init__.py": 0, "rules/half.py": len(RULE.encode())}
    path = f"/v1/code/{sent.json()['sha256']}/files/rules/half.py"
    assert client.request("GET", path).text == RULE


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"content": b"x = (", "headers": PYTHON}, 422, "code.py:1: SyntaxError: '(' was never closed"),
        ({"content": b"x = '\xff'", "headers": PYTHON}, 422, "code.py:1: the byte 0xff is not UTF-8"),
        ({"content": b"x", "headers": {"content-type": "application/zip"}}, 415, "send code as one of text/x-python"),
        ({"json": {"files": {"m.py": 3}}}, 422, "files.m.py: Input should be a valid string; send"),
        ({"json": {"files": {"../m.py": ""}}}, 422, "'../m.py' cannot be sent"),
        ({"json": {"files": {}}}, 422, "the code has no .py file"),
        ({"content": b"{", "headers": JSON}, 422, "the body: Invalid JSON"),
        (
            {"content": b'{"files": {"m.py": "\\ud800"}}', "headers": {"content-type": "application/json"}},
            422,
            "the body",
        ),
        ({"content": b"#" * (2**20 + 1), "headers": PYTHON}, 422, "1,048,577 bytes, more than the 1,048,576"),
        ({"content": b"#" * (MAX_SPEC_BYTES + 1), "headers": PYTHON}, 413, "longer than the limit"),
    ],
)
def test_what_cannot_be_used_is_refused(client: AppClient, body: dict[str, object], status: int, said: str) -> None:
    answer = client.request("POST", "/v1/code", **body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["detail"]


def test_a_service_that_takes_no_code_says_so(client: AppClient, fakes: Fakes) -> None:
    fakes.codes.allowed = False
    answer = send(client)
    assert answer.status_code == 403
    assert "creditgrid serve --allow-code" in answer.json()["detail"]
    assert client.request("GET", f"/v1/code/{'0' * 64}").status_code == 404


def test_an_experiment_is_shown_with_the_units_of_code(client: AppClient, fakes: Fakes) -> None:
    assert isinstance(fakes.codes, Codes)
    assert isinstance(fakes.admission, Admission)
    sha256 = send(client).json()["sha256"]
    shown = client.request("GET", f"/v1/experiments/exploitability?code={sha256}").json()
    assert "half" in shown["parameters"]["properties"]["rule"]["enum"]
    plain = client.request("GET", "/v1/experiments/exploitability").json()
    assert "half" not in plain["parameters"]["properties"]["rule"]["enum"]
    assert client.request("GET", f"/v1/experiments/exploitability?code={'0' * 64}").status_code == 422

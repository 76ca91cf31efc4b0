"""Which role each route needs: every route of the app is classified, and every request is held to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from people_kit import ADMIN_TOKEN, Lab, bearer, open_lab

from creditgrid.core.wire import Role
from creditgrid.service.api.access import ROUTES, Access, find_access

CHANGES_NOTHING = {("POST", "/v1/plans"), ("POST", "/v1/query")}
FOR_ADMINISTRATORS = {
    ("POST", "/v1/gc"),
    ("GET", "/v1/tokens"),
    ("POST", "/v1/tokens"),
    ("DELETE", "/v1/tokens/{name}"),
    ("GET", "/v1/audit"),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(tmp_path_factory.mktemp("lab")) as found:
        yield found


@pytest.fixture(scope="module")
def tokens(lab: Lab) -> dict[str, str]:
    return {role: lab.token(f"{role}er", role=role) for role in Role} | {"settings": ADMIN_TOKEN}


def routes_of(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Methods and paths of all routes below ``/v1``, also those that the documentation leaves out."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from routes_of(route.original_router.routes)
        elif route.path.startswith("/v1"):
            yield from ((method, route.path) for method in route.methods)


def test_every_route_has_a_role(lab: Lab) -> None:
    assert set(routes_of(lab.app.routes)) == set(ROUTES)


def test_what_changes_something_needs_more_than_to_read() -> None:
    for (method, path), access in ROUTES.items():
        if (method, path) in FOR_ADMINISTRATORS:
            assert access.role is Role.ADMIN
        elif method != "GET" and (method, path) not in CHANGES_NOTHING:
            assert access.role is Role.SUBMIT
        else:
            assert access == Access(Role.READ)
        assert bool(access.action) == (method != "GET" and (method, path) not in CHANGES_NOTHING)


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=" ".join)
def test_each_role_on_each_route(lab: Lab, tokens: dict[str, str], method: str, path: str) -> None:
    url = path.replace("{sweep}", "nope").replace("{key}", "0" * 64).replace("{name}", "nope")
    needed = ROUTES[method, path].role
    for holder, token in tokens.items():
        role = Role.ADMIN if holder == "settings" else Role(holder)
        answer = lab.client.request(method, url, headers=bearer(token), json={} if method == "POST" else None)
        allowed = role.allows(needed)
        assert (answer.status_code == 403) is not allowed, (holder, answer.text)
        assert answer.status_code != 401
        if not allowed:
            assert answer.headers["content-type"] == "application/problem+json"
            assert (
                answer.json()["detail"]
                == f"this needs a token of role {needed}; the token of {role + 'er'!r} has role {role}"
            )
    for header in ({}, bearer("cg_" + "x" * 43), bearer(""), {"Authorization": f"Basic {tokens[Role.ADMIN]}"}):
        assert lab.client.request(method, url, headers=header).status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/v1/sweeps"), ("HEAD", "/v1/audit"), ("GET", "/v1/nothing"), ("POST", "/v1/audit"), ("GET", "/v1")],
)
def test_what_no_route_answers_tells_any_holder_so(lab: Lab, tokens: dict[str, str], method: str, path: str) -> None:
    assert find_access(method, path) is None
    assert lab.client.request(method, path, headers=bearer(tokens[Role.READ])).status_code in (404, 405)
    assert lab.client.request(method, path).status_code == 401


@pytest.mark.parametrize(
    "path",
    ["/v1/audit/", "/v1/audit%2f", "/v1//audit", "/v1/./audit", "/V1/audit", "/v1/audit\n", "/v1/sweeps/../audit"],
)
def test_no_spelling_of_a_path_gets_around_its_role(lab: Lab, tokens: dict[str, str], path: str) -> None:
    assert lab.status_of("GET", path, tokens[Role.READ]) in (403, 404)


def test_a_refused_body_is_not_read(lab: Lab, tokens: dict[str, str]) -> None:
    assert lab.status_of("POST", "/v1/sweeps", tokens[Role.READ]) == 403
    assert lab.status_of("POST", "/v1/sweeps", "wrong") == 401

"""Tokens of people, for administrators."""

from __future__ import annotations

from fastapi import APIRouter, Response

from creditgrid.core.wire import NewToken, Page, TokenRequest, TokenView
from creditgrid.service.api.auth import PROTECTED
from creditgrid.service.api.dependencies import ActorDep, ServicesDep

router = APIRouter(prefix=PROTECTED, tags=["people"])


@router.get("/tokens")
def tokens(services: ServicesDep) -> Page[TokenView]:
    """All named tokens, the newest first, those that have ended too."""
    return Page(items=services.tokens.all())


@router.post("/tokens", status_code=201)
def create(services: ServicesDep, actor: ActorDep, body: TokenRequest, response: Response) -> NewToken:
    """Create a token. The answer has its text, which cannot be shown again."""
    response.headers["Cache-Control"] = "no-store"
    return services.tokens.create(body, actor)


@router.delete("/tokens/{name}")
def revoke(services: ServicesDep, actor: ActorDep, name: str) -> TokenView:
    """Revoke a token; the next request with it is refused."""
    return services.tokens.revoke(name, actor)

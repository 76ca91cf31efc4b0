"""Work for a client that ends when the client has gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Receive

Answer = TypeVar("Answer")


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone. The body of its request must have been received."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_gone(
    work: Callable[[], Awaitable[Answer]],
    gone: Callable[[], Awaitable[None]],
    stop: Callable[[], object] | None = None,
) -> Answer:
    """What ``work`` returns or raises.

    Args:
        gone: returns when nobody waits for the answer.
        stop: called then, to make the work end by itself; without it, the work is cancelled.

    Raises:
        ClientDisconnect: the work was cancelled.
    """
    answers: list[Answer] = []
    errors: list[Exception] = []
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            await gone()
            (stop or tasks.cancel_scope.cancel)()

        tasks.start_soon(watch)
        try:
            answers.append(await work())
        except Exception as error:  # raised below: a task group would wrap it
            errors.append(error)
        tasks.cancel_scope.cancel()
    if errors:
        raise errors[0]
    if not answers:
        raise ClientDisconnect
    return answers[0]

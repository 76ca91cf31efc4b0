"""The Python client of a CreditGrid service."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from creditgrid.client.code import Code, files_of
from creditgrid.client.connection import Connection, check_digest, read, resource
from creditgrid.client.errors import BadSetting, UnexpectedAnswer
from creditgrid.client.logs import LogReader
from creditgrid.client.result import Result
from creditgrid.client.spec import Spec, spec_document
from creditgrid.client.sweep import Sweep, pages
from creditgrid.core.states import State
from creditgrid.core.wire import (
    MAX_CHECKPOINT_BYTES,
    MEDIA_TYPES,
    AuditView,
    CheckpointView,
    CodeView,
    ExperimentView,
    NewToken,
    Page,
    PlanView,
    RetentionRequest,
    RetentionView,
    Role,
    SweepView,
    TaskDocument,
    TokenView,
)

if TYPE_CHECKING:
    import httpx
    import numpy as np
    import numpy.typing as npt


class Client:
    """Plans, submits and reads sweeps on one service. Use it as a context manager, or close it.

    Args:
        url: of the service; default: $CREDITGRID_URL, or http://127.0.0.1:8000.
        token: the API token; default: $CREDITGRID_TOKEN, or none.
        timeout: seconds without an answer after which a connection counts as lost.
        transport: replaces the network, in tests.

    Every method may raise the errors of ``creditgrid.client.errors``.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection(url, token, timeout, transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    @property
    def url(self) -> str:
        return self._connection.url

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def plan(self, spec: Spec, code: Code | None = None) -> PlanView:
        """What submitting ``spec`` would compute and what exists already; nothing is written but the code.

        Args:
            spec: as for ``submit``.
            code: as for ``submit``.

        Raises:
            SpecError: if the spec cannot be sent.
            CodeError: if the code cannot be sent.
            InvalidRequest: if the service refuses it, with a pointer to each fault.
        """
        document = self._with_code(spec, code)
        return read(self._connection.request("POST", "/v1/plans", json=document, computing=True), PlanView)

    def submit(self, spec: Spec, code: Code | None = None) -> Sweep:
        """Submit a sweep: a mapping, a SweepSpec, or the path of a YAML or JSON file.

        All tries have one Idempotency-Key, so a lost connection never makes two sweeps.

        Args:
            spec: the sweep.
            code: units that it brings: the path of a Python file or of a folder, or classes and decorated functions of
                a notebook.

        Raises:
            SpecError: if the spec cannot be sent.
            CodeError: if the code cannot be sent.
            Forbidden: if the service takes no code.
            InvalidRequest: if the service refuses it, with a pointer to each fault.
        """
        document = self._with_code(spec, code)
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        answer = self._connection.request("POST", "/v1/sweeps", json=document, headers=headers, computing=True)
        return Sweep(self._connection, read(answer, SweepView))

    def send_code(self, code: Code) -> CodeView:
        """Send code; a spec then names it as ``code: <sha256>``. Code that was sent before is not stored again.

        Raises:
            CodeError: if the code cannot be sent.
            Forbidden: if the service takes no code.
            InvalidRequest: if it cannot be used; the message starts with the file and the line.
        """
        body = {"files": {path: content.decode() for path, content in files_of(code).items()}}
        return read(self._connection.request("POST", "/v1/code", json=body, computing=True), CodeView)

    def code(self, sha256: str) -> CodeView:
        """What is known of code: its files and its units.

        Raises:
            NotFound: if the service has no such code.
        """
        return self._connection.get(CodeView, "code", sha256)

    def download_code(self, sha256: str, folder: str | Path) -> list[Path]:
        """Write the files of code into a folder, which is made; returns their paths.

        Raises:
            NotFound: if the service has no such code.
        """
        written = []
        for path in self.code(sha256).files:
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            self._connection.download(resource("code", sha256, "files", *path.split("/")), file, accept="text/plain")
            written.append(file)
        return written

    def _with_code(self, spec: Spec, code: Code | None) -> dict[str, Any]:
        document = spec_document(spec)
        return document if code is None else document | {"code": self.send_code(code).sha256}

    def sweep(self, id: str) -> Sweep:
        """One sweep.

        Raises:
            NotFound: if the service has none with this id.
        """
        if not id:
            raise BadSetting("a sweep's id is empty")
        return Sweep(self._connection, self._connection.get(SweepView, "sweeps", id))

    def sweeps(
        self, state: State | str | None = None, limit: int | None = None, owner: str | None = None
    ) -> Iterator[Sweep]:
        """Sweeps, the newest first, fetched page by page; if given, only those in ``state`` or of ``owner``."""
        for view in pages(self._connection, "/v1/sweeps", SweepView, limit, state=state, owner=owner):
            yield Sweep(self._connection, view)

    def experiments(self) -> list[ExperimentView]:
        """All experiments of the service."""
        return self._connection.get(Page[ExperimentView], "experiments").items

    def experiment(self, name: str, code: str | None = None) -> ExperimentView:
        """One experiment: its parameters as JSON Schema, and the columns it measures.

        Args:
            name: of the experiment.
            code: the SHA-256 of code, whose units are then among the choices.

        Raises:
            NotFound: if the service has none of this name.
        """
        answer = self._connection.request("GET", resource("experiments", name), params={"code": code})
        return read(answer, ExperimentView)

    def query(self, sql: str) -> Result:
        """The rows of a SQL query over the table ``results`` and the views ``cells`` and ``sweeps``.

        Raises:
            InvalidRequest: if the query is refused or fails.
        """
        return Result.from_stream(self.query_bytes(sql, "arrow"))

    def query_bytes(self, sql: str, format: str) -> bytes:
        """The rows of a SQL query as a file in ``format``: arrow (IPC stream), parquet, csv or json."""
        if format not in MEDIA_TYPES:
            raise BadSetting(f"{format!r} is not a format of results: use one of {', '.join(MEDIA_TYPES)}")
        headers = {"Accept": MEDIA_TYPES[format]}
        return self._connection.request("POST", "/v1/query", json={"sql": sql}, headers=headers, computing=True).content

    def artifact(self, key: str) -> dict[str, npt.NDArray[Any]]:
        """An artifact's tensors by name.

        Raises:
            NotFound: if no artifact is stored under this key.
            DamagedAnswer: if the received data is not what was stored.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        answer = self._connection.request("GET", resource("artifacts", key), computing=True)
        data = answer.content
        check_digest(answer, hashlib.sha256(data).digest())
        try:
            tensors: dict[str, np.ndarray[Any, Any]] = load(data)
        except SafetensorError as error:
            raise UnexpectedAnswer(f"artifact {key} is not a safetensors file: {error}") from error
        return tensors

    def download_artifact(self, key: str, path: str | Path) -> Path:
        """Write an artifact to a safetensors file, which appears when it is complete.

        Raises:
            NotFound: if no artifact is stored under this key.
            DamagedAnswer: if the received data is not what was stored.
        """
        self._connection.download(resource("artifacts", key), Path(path), accept="application/octet-stream, */*")
        return Path(path)

    def import_checkpoint(self, path: str | Path) -> CheckpointView:
        """Send a file made by ``torch.save(model.state_dict(), path)``; a spec then names it as ``checkpoint``.

        Raises:
            BadSetting: if the path is not a file, or the file is too large; nothing is sent.
            InvalidRequest: if the file is not a state dict of a residual MLP.
        """
        answer = self._connection.upload("/v1/checkpoints", _importable(Path(path)), "application/octet-stream")
        return read(answer, CheckpointView)

    def artifact_record(self, key: str) -> dict[str, Any]:
        """An artifact's record: the hashed payload, the parents' keys, the provenance."""
        answer = self._connection.request("GET", resource("artifacts", key, "record"))
        try:
            record = answer.json()
        except ValueError as error:
            raise UnexpectedAnswer(f"the answer of {answer.request.url} is not JSON") from error
        return dict(record)

    def task(self, key: str) -> TaskDocument:
        """A stage or cell of any sweep: what it computes, and the keys of its parents.

        Raises:
            NotFound: if no sweep has a task with this key.
        """
        if not key:
            raise BadSetting("a task's key is empty")
        return self._connection.get(TaskDocument, "tasks", key)

    def logs(self, key: str, tail: int | None = None) -> str:
        """What a task, or the call that computes it with others, has printed, warned and logged; the last MiB of it.

        Args:
            key: of a stage or a cell.
            tail: the most bytes, from the end.

        Raises:
            NotFound: if no sweep has a task with this key.
        """
        return self._log(key).read(tail)

    def follow_logs(self, key: str, tail: int | None = None) -> Iterator[str]:
        """What ``logs`` returns, and then what is printed, piece by piece, until the task's call has ended."""
        return self._log(key).follow(tail)

    def _log(self, key: str) -> LogReader:
        if not key:
            raise BadSetting("a task's key is empty")
        return LogReader(self._connection, key)

    def gc(
        self, older_than_s: float | None = None, max_bytes: int | None = None, dry_run: bool = False
    ) -> RetentionView:
        """Remove artifacts that no open sweep needs. A later sweep that needs one computes it again.

        Without an age and a size only leftovers are removed. After a lost answer the request is sent again, and the
        result has only what the repeated request removed.

        Args:
            older_than_s: remove artifacts that were not used for this many seconds.
            max_bytes: then remove the longest unused ones until the rest fits.
            dry_run: remove nothing, and return what would be removed.
        """
        request = RetentionRequest(older_than_s=older_than_s, max_bytes=max_bytes, dry_run=dry_run)
        answer = self._connection.request("POST", "/v1/gc", json=request.model_dump(), computing=True)
        return read(answer, RetentionView)

    def tokens(self) -> list[TokenView]:
        """All named tokens, the newest first, those that have ended too. Needs the role ``admin``, as all below."""
        return self._connection.get(Page[TokenView], "tokens").items

    def create_token(
        self,
        name: str,
        role: Role | str,
        expires_s: float | None = None,
        *,
        max_open_cells: int | None = None,
        max_priority: int | None = None,
    ) -> NewToken:
        """A new token; its ``token`` cannot be shown again.

        Args:
            name: of its holder, who owns the sweeps submitted with it.
            role: ``read``, ``submit`` or ``admin``.
            expires_s: seconds until it expires; None: never.
            max_open_cells, max_priority: limits of its holder; None: those of the service.

        Raises:
            InvalidRequest: if the name or a limit is none.
            Conflict: if the name has a token.
        """
        limits = {"max_open_cells": max_open_cells, "max_priority": max_priority}
        request = {"name": name, "role": role, "expires_s": expires_s, **limits}
        return read(self._connection.request("POST", "/v1/tokens", json=request), NewToken)

    def revoke_token(self, name: str) -> TokenView:
        """End a token.

        Raises:
            NotFound: if no token has this name, apart from revoked and expired ones.
        """
        if not name:
            raise BadSetting("a token's name is empty")
        return read(self._connection.request("DELETE", resource("tokens", name)), TokenView)

    def audit(
        self, actor: str | None = None, target: str | None = None, limit: int | None = None
    ) -> Iterator[AuditView]:
        """Who changed what, the newest first, fetched page by page; if given, only of ``actor`` or on ``target``."""
        yield from pages(self._connection, "/v1/audit", AuditView, limit, actor=actor, target=target)


def _importable(path: Path) -> Path:
    if not path.exists():
        raise BadSetting(f"{path}: there is no such file")
    if not path.is_file():
        raise BadSetting(f"{path}: that is {'a folder' if path.is_dir() else 'no file'}; give one by torch.save")
    if (size := path.stat().st_size) > MAX_CHECKPOINT_BYTES:
        raise BadSetting(f"{path}: {size:,} bytes are more than the {MAX_CHECKPOINT_BYTES:,} that are accepted")
    return path

"""A private service on this machine, as a child process: for ``creditgrid run``, dry runs, and scripts."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from pydantic import ValidationError

from creditgrid.client.errors import BadSetting, LocalServiceFailed, PackageMissing, api_error
from creditgrid.core.units.code import read, sha256_of
from creditgrid.core.wire import PlanView, Problem

START_TIMEOUT_S = 180.0
"""A cluster needs minutes to start on a slow disk."""
STOP_TIMEOUT_S = 30.0
LOG_LINES = 20
"""The last lines of a failed service's log that are shown."""
REFUSED = 2
"""The service's exit code for bad settings and specs."""
SERVICE = (sys.executable, "-P", "-m", "creditgrid.service")
_SERVER_PACKAGES = ("deltalake", "duckdb", "fastapi", "ray", "sqlalchemy", "torch", "uvicorn")


class LocalService:
    """A service that runs during the ``with`` block, on a free port of 127.0.0.1.

    It is a child in its own session, so that Ctrl-C reaches only this process, which then stops it gracefully.

    Args:
        arguments: for ``creditgrid serve``, such as ``"--data-dir", folder``.

    Raises:
        PackageMissing: on entering, if only the client is installed.
        LocalServiceFailed: on entering, if the service does not start; with the end of its log.
    """

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self.url = ""

    def __enter__(self) -> LocalService:
        require_server()
        self._folder = tempfile.TemporaryDirectory(prefix="creditgrid-")
        port_file, self._log = Path(self._folder.name, "url"), Path(self._folder.name, "service.log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*SERVICE, "serve", "--port", "0", "--port-file", str(port_file), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready(port_file)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Terminate the service, and kill it if it does not stop."""
        try:
            self._process.terminate()
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also after a second Ctrl-C
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._folder.cleanup()

    def _wait_until_ready(self, port_file: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        answered = "nothing"
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                raise LocalServiceFailed(
                    f"the service stopped during its start (exit code {code}):\n{self._last_lines()}"
                )
            # The file is read again each time, because it may have been incomplete.
            self.url = port_file.read_text().strip() if port_file.exists() else ""
            if self.url:
                try:
                    answer = httpx.get(f"{self.url}/readyz", timeout=5.0, trust_env=False)
                    if answer.is_success:
                        return
                    answered = answer.text[:500]
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    answered = str(error)
            time.sleep(0.1)
        raise LocalServiceFailed(
            f"the service is not ready after {START_TIMEOUT_S:.0f} s; /readyz: {answered}\n{self._last_lines()}"
        )

    def _last_lines(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def plan_locally(spec: Mapping[str, Any], data_dir: Path | None = None, code: Path | None = None) -> PlanView:
    """A dry run by this machine's installation, with its data folder; needs no service.

    Args:
        spec: the sweep.
        data_dir: default: as the service's.
        code: a file or folder with units that the spec chooses.

    Raises:
        CodeError: if the code cannot be read.
        PackageMissing: if only the client is installed.
        InvalidRequest: if the spec is refused.
        BadSetting: if the data folder is refused.
        LocalServiceFailed: if the dry run itself fails.
    """
    require_server()
    with tempfile.TemporaryDirectory(prefix="creditgrid-") as folder:
        file = Path(folder, "spec.json")
        options = ["--data-dir", str(data_dir)] if data_dir else []
        if code is not None:
            spec = {**spec, "code": sha256_of(read(code))}
            options += ["--code", str(code)]
        file.write_text(json.dumps(spec))
        done = subprocess.run(
            [*SERVICE, "plan", str(file), "-o", "json", *options],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    try:
        if done.returncode == 0:
            return PlanView.model_validate_json(done.stdout)
        problem = Problem.model_validate_json(done.stdout)
    except ValidationError as error:
        output = "\n".join((done.stderr or done.stdout).decode(errors="replace").splitlines()[-LOG_LINES:])
        if done.returncode == REFUSED:  # without a problem: a setting was refused, not the spec
            raise BadSetting(output) from error
        raise LocalServiceFailed(f"the dry run failed (exit code {done.returncode}):\n{output}") from error
    raise api_error(problem)


def require_server() -> None:
    """Check that the service's packages are installed.

    Raises:
        PackageMissing: if one is not.
    """
    missing = [name for name in _SERVER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing or importlib.util.find_spec("creditgrid.service") is None:
        what = ", ".join(missing) or "creditgrid.service"
        raise PackageMissing(f"the service is not installed here ({what} is missing): pip install 'creditgrid[server]'")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """During the block SIGTERM and SIGHUP end this process through its ``finally`` blocks, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

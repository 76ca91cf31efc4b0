"""Asks for ``/healthz`` five times a second on new connections, in a process of its own, and reports each answer.

Run as a program it prints ``<unix time> <seconds> <status>`` for each; 0 is the status where none came.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

EVERY_S = 0.2
GIVE_UP_S = 20.0


@dataclass(frozen=True, slots=True)
class Beat:
    """One answer: when it was asked for (Unix time), after how many seconds it came, and its status."""

    at: float
    seconds: float
    status: int


class Pulse:
    """Measures while its block runs; ``beats`` are read after that."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.beats: list[Beat] = []

    def __enter__(self) -> Pulse:
        self._output = tempfile.TemporaryFile("w+")
        program = [sys.executable, "-P", str(Path(__file__).resolve()), self._url]
        self._process = subprocess.Popen(program, stdout=self._output, start_new_session=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._output.seek(0)
        for line in self._output.read().splitlines():
            at, seconds, status = line.split()
            self.beats.append(Beat(float(at), float(seconds), int(status)))
        self._output.close()


def main(url: str) -> None:
    place = urlsplit(url)
    while True:
        at, started = time.time(), time.perf_counter()
        status = 0
        connection = HTTPConnection(place.hostname or "", place.port, timeout=GIVE_UP_S)
        try:
            connection.request("GET", "/healthz")
            status = connection.getresponse().status
        except (OSError, HTTPException):
            status = 0
        finally:
            connection.close()
        print(f"{at:.3f} {time.perf_counter() - started:.4f} {status}", flush=True)
        time.sleep(max(0.0, EVERY_S - (time.perf_counter() - started)))


if __name__ == "__main__":
    main(sys.argv[1])

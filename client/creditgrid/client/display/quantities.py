"""Durations, sizes, times and numbers as a person reads them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from humanize import naturalsize


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``, ``3 d 4 h``."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def size(count: float) -> str:
    """A number of bytes, in decimal units: ``940 Bytes``, ``1.2 MB``."""
    return naturalsize(count, format="%.3g")


def moment(at: datetime) -> str:
    """A time in the local time zone."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def number(value: Any) -> str:
    """A value of a cell: a float with four digits, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    return str(value)

"""Charts of a sweep, drawn with Altair from its rows."""

from typing import Literal, TypeAlias

ImageFormat: TypeAlias = Literal["png", "svg", "pdf", "html"]

"""Networks on a grid of patches: what the convolutional network and the transformer share."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from creditgrid.core.errors import TaskError
from creditgrid.core.units.network import Network, Size


class PatchNetwork(Network):
    """Base of networks that cut an image into grid x grid patches, each mapped to d_hidden numbers."""

    grid: int = Field(8, ge=1, le=64, description="Patches along each side of the image.")

    def conflicts(self, image_shape: tuple[int, int, int] | None) -> Iterable[tuple[str, str]]:
        if image_shape is not None and (image_shape[1] % self.grid or image_shape[2] % self.grid):
            _, height, width = image_shape
            yield "grid", f"images of {height} x {width} pixels cannot be cut into {self.grid} x {self.grid} patches"

    def patch(self, size: Size) -> tuple[int, int]:
        """Height and width of a patch.

        Raises:
            TaskError: the images cannot be cut into such a grid.
        """
        for _, why in self.conflicts(size.image_shape):
            raise TaskError(why)
        return size.image_shape[1] // self.grid, size.image_shape[2] // self.grid

    def stem_weights(self, size: Size) -> int:
        """Weights of the stem, without its biases."""
        height, width = self.patch(size)
        return size.image_shape[0] * height * width * size.d_hidden

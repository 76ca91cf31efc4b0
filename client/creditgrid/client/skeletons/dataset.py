"""my_unit: a dataset, as a function that gives its arrays.

Replace the arrays by yours; then `creditgrid check my_unit.py`.
"""

from __future__ import annotations

import numpy as np

from creditgrid.core.units.decorators import dataset


# The declaration is what plans know: they never load the arrays. The fingerprint identifies the content, so change it
# when the arrays change.
@dataset(fingerprint="my_unit 1", image_shape=(1, 8, 8), num_train=1600, num_test=400, num_classes=4)
def my_unit() -> dict[str, np.ndarray]:
    """Bars at four places, with noise."""  # the first line is the title
    draws = np.random.default_rng(0)  # a fixed seed: every load gives the same arrays
    y = np.arange(2000) % 4
    x = draws.integers(0, 128, size=(2000, 1, 8, 8))
    x[np.arange(2000), 0, 2 * y] += 100
    x = x.astype(np.uint8)  # images (N, C, H, W) uint8, labels (N,) int64 from 0
    return {"x_train": x[:1600], "y_train": y[:1600], "x_test": x[1600:], "y_test": y[1600:]}

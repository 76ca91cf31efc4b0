"""Loading a dataset into NumPy arrays, in the layout of `creditgrid.core.science.data.ImageData.to_arrays`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import filelock
import numpy as np

from creditgrid.core.datasets import labelled_images, parquet_files, parquet_fingerprint
from creditgrid.core.errors import DatasetError
from creditgrid.core.units.dataset import Dataset

Array: TypeAlias = np.ndarray[Any, Any]
Images: TypeAlias = tuple[Array, Array]  # uint8 (N, C, H, W), int64 (N,)

UNIT = "unit"
"""The package of a dataset that is a unit, see `load_unit`."""
# Protocols, section 2 (Data); every other set is normalised by its own statistics.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


def load(source: Mapping[str, str]) -> dict[str, Array]:
    """The dataset that a `DatasetRef.source` points to, in file order.

    x_train, x_test: uint8 (N, C, H, W); y_train, y_test: int64 (N,); num_classes: 0-dim int64, the largest label + 1.
    mean, std: float32 (C,), of the training pixels scaled to [0, 1], over all images and positions of a channel (std
    with 1/n); CIFAR-10 by name has the constants above.

    Raises DatasetError when it cannot be downloaded, decoded or normalised, or has changed since it was planned.
    """
    match source["package"]:
        case "parquet":
            train, test = _parquet(Path(source["path"]), source["fingerprint"])
        case "torchvision":
            train, test = _torchvision(source["name"], Path(source["root"]))
        case "scikit-learn":
            train, test = _digits()
        case package:
            raise DatasetError(f"no loader for datasets of {package!r}; this worker may be older than the service")
    mean, std = _statistics(train[0])
    if source.get("name") == "cifar10":
        mean, std = np.asarray(CIFAR10_MEAN), np.asarray(CIFAR10_STD)
    return {
        "x_train": train[0],
        "y_train": train[1],
        "x_test": test[0],
        "y_test": test[1],
        "mean": mean.astype(np.float32),
        "std": std.astype(np.float32),
        "num_classes": np.asarray(max(train[1].max(), test[1].max()) + 1, dtype=np.int64),
    }


def faults_of(declared: type[Dataset], arrays: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the arrays that a dataset gives, beside what it declares."""
    counts = {"train": declared.num_train, "test": declared.num_test}
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    for split, count in counts.items():
        wanted |= {f"x_{split}": ("uint8", (count, *declared.image_shape)), f"y_{split}": ("int64", (count,))}
    if not isinstance(arrays, Mapping) or arrays.keys() != wanted.keys():
        got = ", ".join(map(str, arrays)) if isinstance(arrays, Mapping) else type(arrays).__name__
        yield f"load() gave {got or 'nothing'}, and must give {', '.join(wanted)}"
        return
    for name, (kind, shape) in wanted.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray):
            yield f"{name} is a {type(array).__name__}, and must be a NumPy array"
        elif (str(array.dtype), array.shape) != (kind, shape):
            yield f"{name} is {array.dtype} {array.shape}, and by the declaration it is {kind} {shape}"
        elif name.startswith("y_") and array.size and not 0 <= array.min() <= array.max() < declared.num_classes:
            classes = f"of {declared.num_classes} classes from 0"
            yield f"the labels {name} go from {array.min()} to {array.max()}, and are declared to be {classes}"


def load_unit(unit: type[Dataset]) -> dict[str, Array]:
    """The arrays of a dataset that is a unit, as `load` gives them.

    Raises:
        DatasetError: when they are not those that it declares.
    """
    given = unit().load()
    for fault in faults_of(unit, given):
        raise DatasetError(f"the dataset {unit.name}: {fault}")
    mean, std = _statistics(given["x_train"])
    return {
        **{name: np.ascontiguousarray(array) for name, array in given.items()},
        "mean": mean.astype(np.float32),
        "std": std.astype(np.float32),
        "num_classes": np.asarray(unit.num_classes, dtype=np.int64),
    }


def _statistics(images: Array) -> tuple[Array, Array]:
    """Mean and population standard deviation of each channel, float64 (C,), from exact integer sums of the pixels."""
    channels = images.shape[1]
    count = images.size // channels
    sums, squares = np.zeros(channels, dtype=np.int64), np.zeros(channels, dtype=np.int64)
    step = max(1, 2**22 // images[0].size)  # keeps the squares at some 8 MB
    for start in range(0, len(images), step):
        pixels = images[start : start + step]
        sums += pixels.sum(axis=(0, 2, 3), dtype=np.int64)
        squares += np.square(pixels, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.int64)  # 255² fits 16 bits
    # n Σx² - (Σx)² in Python's integers: exact, without overflow.
    spreads = [count * int(square) - int(total) ** 2 for total, square in zip(sums, squares, strict=True)]
    for channel, spread in enumerate(spreads):
        if spread == 0:
            raise DatasetError(f"channel {channel} has the same value in every training pixel; it cannot be normalised")
    return sums / (255 * count), np.sqrt(np.asarray(spreads, dtype=np.float64)) / (255 * count)


def _parquet(directory: Path, fingerprint: str) -> tuple[Images, Images]:
    files = parquet_files(directory)
    if parquet_fingerprint(files) != fingerprint:
        raise DatasetError(f"the files in {directory} are not those that were planned; submit the sweep again")
    train = _decoded(files["train"], None)
    return train, _decoded(files["test"], train[0].shape[1:])


def _decoded(paths: Sequence[Path], shape: tuple[int, ...] | None) -> Images:
    """Every image and label of some Parquet files; all images have `shape` (C, H, W), or else that of the first."""
    images, labels = [], []
    for path in paths:
        for first_row, encoded, classes in labelled_images(path):
            batch = []
            for row, content in enumerate(encoded, start=first_row):
                try:
                    pixels = _pixels(content)
                except Exception as error:  # Pillow raises a dozen kinds on damaged images
                    raise DatasetError(f"{path}, row {row}: the image does not decode: {error}") from error
                shape = shape or pixels.shape
                if pixels.shape != shape:
                    sizes = f"{_size(pixels.shape)}, the first one is {_size(shape)}"
                    raise DatasetError(f"{path}, row {row}: the image is {sizes}; expected one size for all")
                batch.append(pixels)
            images.append(np.ascontiguousarray(np.stack(batch)))
            labels += classes
    return np.concatenate(images), np.asarray(labels, dtype=np.int64)


def _pixels(content: bytes) -> Array:
    """A decoded JPEG or PNG, uint8 (C, H, W) with one or three channels.

    Pillow decodes it, though torchvision decodes JPEG in half the time: torchvision deprecates its decoders, and many a
    damaged PNG makes them end the process.
    """
    from PIL import Image

    image = Image.open(BytesIO(content), formats=["JPEG", "PNG"])
    mode = {"L": "L", "1": "L", "RGB": "RGB", "P": "RGB"}.get(image.mode)
    if mode is None:
        raise ValueError(f"its pixels are {image.mode}; expected 8-bit greyscale, RGB or a palette")
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _size(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width}x{height} with {channels} channel{'s' if channels > 1 else ''}"


def _digits() -> tuple[Images, Images]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 with values 0…16 stretched to 0…255; the last 360 are the test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    return (images[:-360], labels[:-360]), (images[-360:], labels[-360:])


def _torchvision(name: str, root: Path) -> tuple[Images, Images]:
    """A torchvision set from `root`, downloaded if it is not there yet."""
    from torchvision import datasets

    make: Callable[..., Any] = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
        "svhn": datasets.SVHN,
    }[name]
    splits = ("train", "test") if name == "svhn" else (True, False)
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Two workers that write one file at the same time would corrupt it.
        with filelock.FileLock(root / f".{name}.lock", fallback_to_soft=False):
            train, test = (_images(make(root, split, download=True)) for split in splits)
            return train, test
    except (OSError, RuntimeError) as error:
        raise DatasetError(
            f"dataset {name!r} is not in {root} and torchvision could not download it there: {error}. "
            f"Run once where there is a network, or copy torchvision's files for {name} into that directory "
            "(CREDITGRID_DATASETS names another one)"
        ) from error


def _images(dataset: Any) -> Images:
    images = np.asarray(dataset.data)
    labels = np.asarray(dataset.labels if hasattr(dataset, "labels") else dataset.targets).astype(np.int64)
    if images.ndim == 3:  # MNIST's (N, H, W)
        images = images[:, None]
    elif images.shape[-1] == 3:  # CIFAR's (N, H, W, C); SVHN's is (N, C, H, W) already
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images), labels

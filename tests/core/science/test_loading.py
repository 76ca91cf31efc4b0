from __future__ import annotations

import functools
import gc
import gzip
import hashlib
import http.server
import io
import pickle
import random
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import sklearn.datasets
import torchvision.datasets
from PIL import Image

from creditgrid.core.datasets import resolve
from creditgrid.core.errors import DatasetError
from creditgrid.core.science.data import ImageData
from creditgrid.core.science.loading import Array, load


def _encode(pixels: Array, format_: str = "PNG", mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, format_)
    return file.getvalue()


def _write(path: Path, images: list[bytes], labels: list[int]) -> None:
    rows = [{"bytes": content, "path": None} for content in images]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, image), "label": labels}), path)


def _colour(count: int, seed: int = 0) -> Array:
    """Smooth random pictures (N, 6, 5, 3), of which JPEG loses little."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(60, 190, size=(count, 1, 1, 3)) + np.linspace(-20, 20, 6)[None, :, None, None]
    return np.broadcast_to(base, (count, 6, 5, 3)).round().astype(np.uint8)


def _refused(directory: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        load(resolve(str(directory)).source)
    return str(caught.value)


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5)], ids=["colour", "greyscale"])
def test_png_tables_keep_every_pixel_and_measure_themselves(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (1100, *shape), np.uint8), rng.integers(0, 256, (3, *shape), np.uint8)
    labels = rng.integers(4, size=1100)
    for shard, part in enumerate((slice(0, 1050), slice(1050, 1100))):
        path = tmp_path / f"train-{shard:05}-of-00002.parquet"
        _write(path, [_encode(pixels) for pixels in train[part]], labels[part].tolist())
    _write(tmp_path / "test.parquet", [_encode(pixels) for pixels in test], [6, 0, 1])
    arrays = load(resolve(str(tmp_path)).source)
    train, test = (np.moveaxis(split.reshape(-1, 6, 5, len(arrays["mean"])), 3, 1) for split in (train, test))
    np.testing.assert_array_equal(arrays["x_train"], train)
    np.testing.assert_array_equal(arrays["x_test"], test)
    np.testing.assert_array_equal(arrays["y_train"], labels)
    np.testing.assert_array_equal(arrays["y_test"], [6, 0, 1])
    assert arrays["num_classes"] == 7
    # One channel at a time, the textbook's formulas in float64.
    for channel, pixels in enumerate(np.moveaxis(train.astype(np.float64), 1, 0)):
        values = (pixels / 255).ravel()
        mean = values.sum() / len(values)
        std = np.sqrt(np.square(values - mean).sum() / len(values))
        np.testing.assert_allclose(arrays["mean"][channel], mean, rtol=1e-7)
        np.testing.assert_allclose(arrays["std"][channel], std, rtol=1e-7)
    assert ImageData.from_arrays(arrays).num_classes == 7


def test_the_layout_is_that_of_image_data(tmp_path: Path) -> None:
    _write(tmp_path / "train.parquet", [_encode(pixels) for pixels in _colour(4)], [0, 1, 2, 3])
    _write(tmp_path / "test.parquet", [_encode(pixels) for pixels in _colour(2, seed=1)], [0, 1])
    arrays = load(resolve(str(tmp_path)).source)
    again = ImageData.from_arrays(arrays).to_arrays()
    assert arrays.keys() == again.keys()
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (again[name].dtype, again[name].shape)
        assert array.flags.c_contiguous


@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_and_png_may_be_mixed(tmp_path: Path, grey: bool) -> None:
    pictures = _colour(4)[..., 0] if grey else _colour(4)
    encoded = [_encode(pixels, "JPEG" if index % 2 else "PNG") for index, pixels in enumerate(pictures)]
    _write(tmp_path / "train.parquet", encoded, [0, 1, 0, 1])
    _write(tmp_path / "test.parquet", encoded[:1], [0])
    images = load(resolve(str(tmp_path)).source)["x_train"]
    assert images.shape == (4, 1 if grey else 3, 6, 5)
    for content, image in zip(encoded, images, strict=True):
        expected = np.asarray(Image.open(io.BytesIO(content)))
        np.testing.assert_array_equal(image[0] if grey else image.transpose(1, 2, 0), expected)


def test_palette_and_one_bit_pngs(tmp_path: Path) -> None:
    bits = np.array([[True, False], [False, False]])
    _write(tmp_path / "train.parquet", [_encode(bits)], [0])
    _write(tmp_path / "test.parquet", [_encode(bits)], [0])
    np.testing.assert_array_equal(load(resolve(str(tmp_path)).source)["x_train"], [[[[255, 0], [0, 0]]]])
    pixels = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]], dtype=np.uint8)
    _write(tmp_path / "train.parquet", [_encode(pixels, mode="P")], [0])
    _write(tmp_path / "test.parquet", [_encode(pixels)], [0])
    np.testing.assert_array_equal(load(resolve(str(tmp_path)).source)["x_train"][0], pixels.transpose(2, 0, 1))


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _scrambled(content: bytes) -> bytes:
    return content[:20] + bytes(byte ^ 0x55 for byte in content[20:])


@pytest.mark.parametrize("damage", [_cut, _scrambled])
@pytest.mark.parametrize("format_", ["PNG", "JPEG"])
def test_an_image_that_does_not_decode_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], format_: str) -> None:
    good = [_encode(pixels, format_) for pixels in _colour(3)]
    _write(tmp_path / "train.parquet", good, [0, 1, 2])
    _write(tmp_path / "test.parquet", [*good[:2], damage(good[2])], [0, 1, 2])
    assert _refused(tmp_path).startswith(f"{tmp_path / 'test.parquet'}, row 2: the image does not decode: ")


def test_damaged_pngs_end_in_an_error_and_never_the_process(tmp_path: Path) -> None:
    draws = random.Random(0)
    good = _encode(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    for _ in range(300):
        content = bytearray(good)
        for _ in range(draws.randint(1, 5)):
            content[draws.randrange(8, draws.choice([40, len(content)]))] = draws.randrange(256)
        _write(tmp_path / "train.parquet", [bytes(content)], [0])
        _write(tmp_path / "test.parquet", [good], [0])
        try:
            load(resolve(str(tmp_path)).source)
        except DatasetError as error:
            assert "row 0: " in str(error)  # noqa: PT017 (most damage is refused, some is harmless)


@pytest.mark.parametrize(
    ("pixels", "mode", "message"),
    [
        (_colour(1)[0][:, :4], None, "row 1: the image is 4x6 with 3 channels, the first one is 5x6 with 3 channels"),
        (_colour(1)[0][..., 0], None, "row 1: the image is 5x6 with 1 channel, the first one is 5x6 with 3 channels"),
        (_colour(1)[0], "RGBA", "row 1: the image does not decode: its pixels are RGBA; expected 8-bit greyscale"),
        (_colour(1)[0][..., 0].astype(np.uint16), None, "row 1: the image does not decode: its pixels are I;16"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_that_do_not_fit_the_others(
    tmp_path: Path, pixels: Array, mode: str | None, message: str, split: str
) -> None:
    good = _encode(_colour(1)[0])
    for name in ("train", "test"):
        _write(tmp_path / f"{name}.parquet", [good, _encode(pixels, mode=mode) if name == split else good], [0, 1])
    assert f"{split}.parquet, {message}" in _refused(tmp_path)


def test_a_cmyk_jpeg_is_refused(tmp_path: Path) -> None:
    for name in ("train", "test"):
        _write(tmp_path / f"{name}.parquet", [_encode(_colour(1)[0], "JPEG", "CMYK")], [0])
    assert "train.parquet, row 0: the image does not decode: its pixels are CMYK; expected 8-bit" in _refused(tmp_path)


def test_a_channel_of_one_value_cannot_be_normalised(tmp_path: Path) -> None:
    pixels = _colour(2)
    pixels[..., 2] = 9
    for name in ("train", "test"):
        _write(tmp_path / f"{name}.parquet", [_encode(picture) for picture in pixels], [0, 1])
    assert _refused(tmp_path) == "channel 2 has the same value in every training pixel; it cannot be normalised"


def test_files_that_changed_since_planning_are_refused(tmp_path: Path) -> None:
    for name in ("train", "test"):
        _write(tmp_path / f"{name}.parquet", [_encode(picture) for picture in _colour(2)], [0, 1])
    source = resolve(str(tmp_path)).source
    _write(tmp_path / "train.parquet", [_encode(picture) for picture in _colour(2)], [1, 0])
    with pytest.raises(DatasetError, match="are not those that were planned; submit the sweep again"):
        load(source)


def test_a_source_from_another_version_is_refused() -> None:
    with pytest.raises(DatasetError, match="no loader for datasets of 'webdataset'"):
        load({"package": "webdataset"})


def test_cifar10_from_parquet(cifar_dir: Path) -> None:
    arrays = load(resolve(str(cifar_dir)).source)
    assert arrays["x_train"].shape == (50_000, 3, 32, 32)
    assert arrays["x_test"].shape == (10_000, 3, 32, 32)
    assert np.bincount(arrays["y_train"]).tolist() == [5_000] * 10
    assert np.bincount(arrays["y_test"]).tolist() == [1_000] * 10
    # JPEG moves the channel statistics everybody quotes for CIFAR-10 by less than a hundredth.
    np.testing.assert_allclose(arrays["mean"], [0.4914, 0.4822, 0.4465], atol=0.01)
    np.testing.assert_allclose(arrays["std"], [0.2470, 0.2435, 0.2616], atol=0.01)
    table = pq.ParquetFile(cifar_dir / "test.parquet").read_row_group(0).slice(9_000, 1).to_pylist()[0]
    np.testing.assert_array_equal(
        arrays["x_test"][9_000].transpose(1, 2, 0), np.asarray(Image.open(io.BytesIO(table["image"]["bytes"])))
    )
    assert arrays["y_test"][9_000] == table["label"]


def test_digits() -> None:
    ref = resolve("digits")
    arrays = load(ref.source)
    assert (len(arrays["x_train"]), len(arrays["x_test"])) == (ref.num_train, ref.num_test)
    assert arrays["x_train"].shape[1:] == ref.image_shape
    assert arrays["num_classes"] == ref.num_classes
    digits = sklearn.datasets.load_digits()
    images = np.concatenate([arrays["x_train"], arrays["x_test"]])
    for value in range(17):
        assert set(images[:, 0][digits.images == value]) == {round(value * 255 / 16)}
    np.testing.assert_array_equal(np.concatenate([arrays["y_train"], arrays["y_test"]]), digits.target)
    assert arrays["mean"] == pytest.approx((arrays["x_train"] / 255).mean(), rel=1e-6)
    assert arrays["std"] == pytest.approx((arrays["x_train"] / 255).std(), rel=1e-6)


# torchvision's sets, in little, from a server on this machine: its own download, checksums and parsers are run.


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A directory, the address it is served at, and the requests made."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    served = tmp_path / "served"
    served.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=served)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield served, f"http://127.0.0.1:{httpd.server_address[1]}", asked
        httpd.shutdown()
        thread.join()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "deep" / "root"
    monkeypatch.setenv("CREDITGRID_DATASETS", str(path))
    return path


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def _serve_cifar(
    served: Path, url: str, kind: type, labels: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Array, Array]:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8)
    classes = np.array([3, 0, 9, 1, 2])
    files = {
        "data_batch_1": {"data": images[:3].reshape(3, -1), labels: classes[:3].tolist()},
        "test_batch": {"data": images[3:].reshape(2, -1), labels: classes[3:].tolist()},
        "batches.meta": {"label_names": list("abcdefghij"), "fine_label_names": list("abcdefghij")},
    }
    pickled = {name: pickle.dumps(content) for name, content in files.items()}
    with tarfile.open(served / "cifar.tar.gz", "w:gz") as archive:
        for name, content in pickled.items():
            info = tarfile.TarInfo(f"{kind.base_folder}/{name}")  # type: ignore[attr-defined]
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    key = "label_names" if labels == "labels" else "fine_label_names"
    monkeypatch.setattr(kind, "url", f"{url}/cifar.tar.gz")
    monkeypatch.setattr(kind, "tgz_md5", _md5((served / "cifar.tar.gz").read_bytes()))
    monkeypatch.setattr(kind, "train_list", [["data_batch_1", _md5(pickled["data_batch_1"])]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", _md5(pickled["test_batch"])]])
    monkeypatch.setattr(kind, "meta", {"filename": "batches.meta", "key": key, "md5": _md5(pickled["batches.meta"])})
    return images, classes


@pytest.mark.parametrize(
    ("name", "kind", "labels"), [("cifar10", "CIFAR10", "labels"), ("cifar100", "CIFAR100", "fine_labels")]
)
def test_cifar_is_downloaded_once(
    name: str,
    kind: str,
    labels: str,
    server: tuple[Path, str, list[str]],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served, url, asked = server
    images, classes = _serve_cifar(served, url, getattr(torchvision.datasets, kind), labels, monkeypatch)
    requests = []
    for _ in range(2):
        arrays = load(resolve(name).source)
        requests.append(len(asked))
        np.testing.assert_array_equal(arrays["x_train"], images[:3])
        np.testing.assert_array_equal(arrays["y_train"], classes[:3])
        np.testing.assert_array_equal(arrays["x_test"], images[3:])
        np.testing.assert_array_equal(arrays["y_test"], classes[3:])
        assert arrays["num_classes"] == 10
        if name == "cifar10":
            np.testing.assert_array_equal(arrays["mean"], np.array([0.4914, 0.4822, 0.4465], np.float32))
            np.testing.assert_array_equal(arrays["std"], np.array([0.2470, 0.2435, 0.2616], np.float32))
        else:
            np.testing.assert_allclose(arrays["mean"], (images[:3] / 255).mean((0, 2, 3)), rtol=1e-6)
    assert requests[0] == requests[1] > 0
    assert root.is_dir()


def _idx(array: Array) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist(
    name: str, kind: str, server: tuple[Path, str, list[str]], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, url, _ = server
    rng = np.random.default_rng(0)
    images, classes = rng.integers(0, 256, (5, 28, 28), np.uint8), np.array([3, 0, 9, 1, 2], np.uint8)
    resources = []
    for prefix, part in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        for suffix, array in (("images-idx3", images[part]), ("labels-idx1", classes[part])):
            path = served / f"{prefix}-{suffix}-ubyte.gz"
            path.write_bytes(_idx(array))
            resources.append((path.name, _md5(path.read_bytes())))
    monkeypatch.setattr(getattr(torchvision.datasets, kind), "mirrors", [f"{url}/"])
    monkeypatch.setattr(getattr(torchvision.datasets, kind), "resources", resources)
    arrays = load(resolve(name).source)
    np.testing.assert_array_equal(arrays["x_train"], images[:3, None])
    np.testing.assert_array_equal(arrays["y_train"], classes[:3])
    np.testing.assert_array_equal(arrays["x_test"], images[3:, None])
    np.testing.assert_array_equal(arrays["y_test"], classes[3:])
    assert arrays["x_train"].dtype == np.uint8
    assert arrays["y_train"].dtype == np.int64


def test_svhn(server: tuple[Path, str, list[str]], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, url, _ = server
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    classes = np.array([3, 10, 9, 1, 2])  # SVHN writes the digit 0 as 10
    splits = {}
    for split, part in (("train", slice(0, 3)), ("test", slice(3, 5))):
        path = served / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": images[part].transpose(1, 2, 3, 0), "y": classes[part, None]})
        splits[split] = [f"{url}/{path.name}", path.name, _md5(path.read_bytes())]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", splits)
    arrays = load(resolve("svhn").source)
    np.testing.assert_array_equal(arrays["x_train"], images[:3].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(arrays["y_train"], [3, 0, 9])
    np.testing.assert_array_equal(arrays["x_test"], images[3:].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(arrays["y_test"], [1, 2])


# An HTTPError keeps its connection open until it is collected, and so do the errors it caused.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", ["refused", "missing", "corrupt"])
def test_a_failed_download_says_what_was_tried_and_what_to_do(
    fault: str, server: tuple[Path, str, list[str]], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, url, _ = server
    _serve_cifar(served, url, torchvision.datasets.CIFAR10, "labels", monkeypatch)
    if fault == "refused":
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:1/cifar.tar.gz")
    elif fault == "missing":
        (served / "cifar.tar.gz").unlink()
    else:
        (served / "cifar.tar.gz").write_bytes(b"<html>not today</html>")
    with pytest.raises(DatasetError) as caught:
        load(resolve("cifar10").source)
    message = str(caught.value)
    del caught
    gc.collect()
    assert message.startswith(f"dataset 'cifar10' is not in {root} and torchvision could not download it there: ")
    assert "CREDITGRID_DATASETS" in message


def test_a_root_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CREDITGRID_DATASETS", str(tmp_path / "file"))
    with pytest.raises(DatasetError, match=f"dataset 'mnist' is not in {tmp_path / 'file'}"):
        load(resolve("mnist").source)

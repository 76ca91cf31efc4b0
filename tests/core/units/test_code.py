"""The files of brought code, and their identity."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load, save

from creditgrid.core.errors import CodeError
from creditgrid.core.units.code import MAX_BYTES, MAX_FILES, checked, from_arrays, is_sha256, read, sha256_of, to_arrays


def test_the_identity_is_that_of_paths_and_contents_in_any_order() -> None:
    files = {"b.py": b"y = 1\n", "a.py": b"x = 1\n"}
    found = sha256_of(files)
    assert is_sha256(found)
    assert found == sha256_of(dict(reversed(files.items())))
    assert len({found, sha256_of({"b.py": b"y = 1\n"}), sha256_of({"a.py": b"y = 1\n", "b.py": b"x = 1\n"})}) == 3
    assert not is_sha256("../../etc/passwd")


def test_an_artifact_holds_the_files() -> None:
    files = {"a/__init__.py": b"", "a/b-1.py": "é = 1\n".encode()}
    assert from_arrays(load(save(dict(to_arrays(checked(files)))))) == files


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no .py file"),
        ({"/etc/x.py": b""}, "'/etc/x.py' cannot be sent"),
        ({"../x.py": b""}, "cannot be sent"),
        ({"a/../x.py": b""}, "cannot be sent"),
        ({"a\\x.py": b""}, "cannot be sent"),
        ({".x.py": b""}, "cannot be sent"),
        ({"x.txt": b""}, "ends in .py"),
        ({"x.py": b"a = 1\nb = '\xff'\n"}, r"x\.py:2: the byte 0xff is not UTF-8"),
        ({"x.py": b"#" * (MAX_BYTES + 1)}, "1,048,577 bytes"),
        ({f"x{n}.py": b"" for n in range(MAX_FILES + 1)}, "101 files"),
    ],
)
def test_what_cannot_be_sent_is_refused(files: dict[str, bytes], said: str) -> None:
    with pytest.raises(CodeError, match=said):
        checked(files)


def test_a_file_or_a_folder_is_read(tmp_path: Path) -> None:
    for name in ("a.py", "in/b.py", "in/__pycache__/c.py", ".venv/d.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    assert read(tmp_path) == {"a.py": b"# a.py", "in/b.py": b"# in/b.py"}
    assert read(tmp_path / "in" / "b.py") == {"b.py": b"# in/b.py"}
    with pytest.raises(CodeError, match=r"none\.py: No such file or directory: give a Python file, or a folder"):
        read(tmp_path / "none.py")
    with pytest.raises(CodeError, match="cannot be sent"):
        read(tmp_path / "notes.txt")

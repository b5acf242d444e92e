"""What stands between a user and llama.cpp, wherever that is installed or not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from goodspeed.errors import ModelError, UnknownModel
from goodspeed_agent.drafters import llama, load_drafter


def test_without_the_library_the_user_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(llama, "_library", llama._library.__wrapped__)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ModelError, match=r"pip install '\.\[gguf\]' in .*, or draft without: --draft suffix"):
        load_drafter(str(file))


@pytest.mark.parametrize(
    ("installed", "sentence"), [("old", "too old for GoodSpeed"), ("broken", "does not work here")]
)
def test_a_library_that_does_not_do_is_told_from_one_that_is_missing(
    installed: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text("" if installed == "old" else "raise OSError('libgomp.so.1 is missing')")
    (package / "llama_cpp.py").touch()
    monkeypatch.setattr(llama, "_library", llama._library.__wrapped__)
    for name in imported_llama_cpp():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match=sentence):
        load_drafter(str(file))
    for name in imported_llama_cpp():
        del sys.modules[name]


def imported_llama_cpp() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == "llama_cpp"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"'.*none\.gguf' cannot be read \(No such file.*\): check its path"):
        load_drafter(str(tmp_path / "none.gguf"))
    with pytest.raises(UnknownModel, match=r"cannot be read \(Is a directory\)"):
        (tmp_path / "folder.gguf").mkdir()
        load_drafter(str(tmp_path / "folder.gguf"))


@pytest.mark.parametrize("contents", [b"", b"GG", b"PK\x03\x04 and more"])
def test_a_file_that_is_something_else(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "other.GGUF").write_bytes(contents)
    with pytest.raises(UnknownModel, match="is no GGUF file: it does not begin with 'GGUF'"):
        load_drafter(str(tmp_path / "other.GGUF"))

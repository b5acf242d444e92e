"""Shards: what is written is read again, and whatever else lies there is refused in a sentence."""

from __future__ import annotations

import errno
import io
import json
import logging
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from goodspeed.errors import CorruptData
from goodspeed.tuning.passages import BLOCK_FIELDS, Passage, read_shard, read_shards, write_shard


def passage(length: int = 9, start: int = 3, known: int = 5, *, client: str = "edge", seed: int = 0) -> Passage:
    rng = np.random.default_rng(seed)
    return Passage(
        tokens=rng.integers(97, size=length).astype(np.int32),
        start=start,
        support=rng.integers(97, size=(known, 4)).astype(np.int32),
        log_p=np.log(rng.random((known, 4))).astype(np.float16),
        client=client,
    )


@st.composite
def passages(draw: st.DrawFn, width: int) -> Passage:
    length = draw(st.integers(1, 12))
    start = draw(st.integers(1, length))
    known = draw(st.integers(0, length - start))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Passage(
        tokens=rng.integers(2**17, size=length).astype(np.int32),
        start=start,
        support=rng.integers(2**17, size=(known, width)).astype(np.int32),
        log_p=-rng.exponential(size=(known, width)).astype(np.float16),
        client=draw(st.text(max_size=5)),
        domain=draw(st.text(max_size=5)),
        drafter=draw(st.text(max_size=5)),
        temperature=draw(st.floats(0, 2)),
        blocks=rng.integers(99, size=(draw(st.integers(0, 3)), len(BLOCK_FIELDS))).astype(np.int32),
    )


def same(one: Passage, other: Passage) -> bool:
    """Dtypes included."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Passage)]
    return all((np.array_equal(a, b) and a.dtype == b.dtype) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


@settings(max_examples=30)
@given(st.integers(1, 5).flatmap(lambda width: st.lists(passages(width), min_size=1, max_size=4)))
def test_what_is_written_is_read_again(written: list[Passage]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "one.safetensors")
        write_shard(path, written)
        read = read_shard(path)
        assert [file.name for file in Path(folder).iterdir()] == [path.name]
    assert len(read) == len(written)
    assert all(same(one, other) for one, other in zip(read, written, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.safetensors"
    write_shard(path, [passage()])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CorruptData, match=r"a\.safetensors cannot be read .*: delete it"):
        read_shard(path)


@pytest.mark.parametrize("content", [b"hello", b"\xff" * 200, b"{}"])
def test_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptData, match="cannot be read"):
        read_shard(path)
    with pytest.raises(CorruptData, match="cannot be read"):
        read_shard(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        (None, "not 'goodspeed passages 1'"),
        ({"format": "pt"}, "it says 'pt'"),
        ({"format": "goodspeed passages 1"}, "passages"),
        ({"format": "goodspeed passages 1", "passages": "["}, "cannot be read"),
        ({"format": "goodspeed passages 1", "passages": "[3]"}, "cannot be read"),
        ({"format": "goodspeed passages 1", "passages": '[{"length": 4}]'}, "cannot be read"),
    ],
)
def test_tensors_of_something_else_are_refused(tmp_path: Path, metadata: dict[str, str] | None, why: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"tokens": np.zeros(4, np.int32)}, path, metadata)
    with pytest.raises(CorruptData, match=why):
        read_shard(path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"length": 10}, "less than it says"),
        ({"known": 6}, "less than it says"),
        ({"start": 0}, "do not fit"),
        ({"start": 5}, "do not fit"),
    ],
)
def test_a_shard_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, int], why: str) -> None:
    one = passage()
    facts = {"length": 9, "start": 3, "known": 5, "blocks": 0, "client": "", "domain": "", "drafter": ""}
    path = tmp_path / "a.safetensors"
    save_file(
        {"tokens": one.tokens, "support": one.support, "log_p": one.log_p, "blocks": one.blocks},
        path,
        {"format": "goodspeed passages 1", "passages": json.dumps([facts | {"temperature": 1.0} | changes])},
    )
    with pytest.raises(CorruptData, match=why):
        read_shard(path)


def test_one_bad_shard_is_named_and_the_others_are_read_oldest_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, client in (("2", "second"), ("1", "first")):
        write_shard(tmp_path / f"{name}.safetensors", [passage(client=client)])
    (tmp_path / "0.safetensors").write_bytes(b"broken")
    (tmp_path / "3.safetensors.unfinished").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        read = read_shards(tmp_path)
    assert [one.client for one in read] == ["first", "second"]
    assert len(caplog.records) == 1
    assert "0.safetensors" in caplog.text


def test_a_folder_without_a_readable_shard_says_so(tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match=r"it has no \*\.safetensors files; record some with"):
        read_shards(tmp_path)
    (tmp_path / "0.safetensors").write_bytes(b"broken")
    with pytest.raises(CorruptData, match="none of its 1 shards can be read"):
        read_shards(tmp_path)


@pytest.mark.parametrize("failing", ["write", "replace"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "a.safetensors"
    write_shard(path, [passage(seed=1)])
    before = path.read_bytes()

    class HalfWritten(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        if failing == "write":
            patched.setattr(
                "goodspeed.tuning.passages.open", lambda path, mode, opener: HalfWritten(path, "wb"), raising=False
            )
        else:
            patched.setattr("goodspeed.tuning.passages.os.replace", refuse)
        for name in ("a", "b"):
            with pytest.raises(OSError, match="No space left"):
                write_shard(tmp_path / f"{name}.safetensors", [passage(seed=2)])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before

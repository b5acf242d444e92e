"""What `--data` and `--prompts` name, read by a tiny target; and what that target is asked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel

from goodspeed.errors import CorruptData, InvalidRequest
from goodspeed.tuning.measuring import TEMPERATURES, Sample, measure
from goodspeed.tuning.passages import Passage, write_shard
from goodspeed.tuning.sources import DataSpec, load_source
from goodspeed.tuning.teaching import SUPPORT, read_texts, write_texts
from tests.serving import tiny_tokenizer
from tests.tiny_models import VOCAB, tiny_llama

ROW = 12


def reading(seed: int) -> PreTrainedModel:
    model = tiny_llama(seed)
    module: nn.Module = model
    module.eval()
    return model


@pytest.fixture(scope="module")
def target() -> PreTrainedModel:
    return reading(0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_buffer(tiny_tokenizer()["tokenizer.json"])


def words(count: int, first: int = 1) -> str:
    return " ".join(f"w{(first + number) % VOCAB}" for number in range(count))


def load(spec: DataSpec, target: PreTrainedModel, tokenizer: Tokenizer, at_most: int = 100) -> list[Passage]:
    return load_source(spec, target, tokenizer, row_tokens=ROW, at_most=at_most, seed=0)


# Names and shares


def test_a_path_has_a_share_or_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "text=3"
    file.write_text("x")
    assert DataSpec.parse(str(file), "read") == DataSpec(file, 1.0, "read")
    assert DataSpec.parse(f"{file}=0.25", "write") == DataSpec(file, 0.25, "write")
    assert DataSpec.parse("~/text=3=2", "read") == DataSpec(file, 2.0, "read")
    assert DataSpec.parse(str(tmp_path), "read").path == tmp_path


@pytest.mark.parametrize(
    ("suffix", "why"),
    [
        ("=half", "'half' is no share; write PATH=0.5, say"),
        ("=", "'' is no share"),
        ("=0", "a share is above 0"),
        ("=-1", "a share is above 0"),
        ("=nan", "a share is above 0"),
        ("=inf", "a share is above 0"),
        ("-not", "no file or folder"),
        ("-not=2", "no file or folder"),
    ],
)
def test_what_is_no_path_and_share_is_refused(tmp_path: Path, suffix: str, why: str) -> None:
    file = tmp_path / "text"
    file.write_text("x")
    with pytest.raises(InvalidRequest, match=why):
        DataSpec.parse(f"{file}{suffix}", "read")


# Texts


def test_a_text_is_cut_into_rows_and_the_target_says_what_it_thinks(
    tmp_path: Path, target: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(words(3 * ROW + 5))
    passages = load(DataSpec(file), target, tokenizer)
    assert sorted(int(one.tokens[0]) for one in passages) == [1, 1 + ROW, 1 + 2 * ROW]
    for one in passages:
        assert one.client == "notes"
        assert (one.start, one.known, one.support.shape[1]) == (1, ROW - 1, SUPPORT)
        with torch.no_grad():
            logits = target(input_ids=torch.from_numpy(one.tokens[None].astype(np.int64))).logits[0, :-1]
        expected, tokens = logits.log_softmax(-1).topk(SUPPORT)
        assert np.array_equal(one.support, tokens.numpy())
        np.testing.assert_allclose(one.log_p, expected.numpy(), rtol=1e-3)


def test_no_more_rows_than_asked_and_the_same_ones_for_a_seed(
    tmp_path: Path, target: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    file = tmp_path / "notes.md"
    file.write_text(words(7 * ROW))
    first, again = (load(DataSpec(file), target, tokenizer, at_most=3) for _ in range(2))
    assert len(first) == 3
    assert [one.tokens.tolist() for one in first] == [one.tokens.tolist() for one in again]


def test_lines_of_json_name_their_clients(tmp_path: Path, target: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """A line separator inside a string is a character of the text, not the end of the line."""
    file = tmp_path / "chat.jsonl"
    entries: list[dict[str, object]] = [
        {"text": words(ROW, 1), "client": "ann"},
        {"prompt": words(ROW, 20).replace(" ", "\u2028"), "client": 7},
        {"text": "", "prompt": words(ROW, 40)},
    ]
    file.write_text("\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n\n", encoding="utf-8")
    passages = load(DataSpec(file), target, tokenizer)
    assert {(one.client, int(one.tokens[0])) for one in passages} == {("ann", 1), ("7", 20), ("chat", 40)}


def test_a_folder_has_its_subfolders_as_clients(tmp_path: Path, target: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Each gets its part of the rows, however much the others wrote; what is too short or no text is passed over."""
    folder = tmp_path / "corpus"
    for name, rows in (("ann/deep/a.py", 9), ("bob/b.rst", 2), ("c.txt", 1), ("short/s.txt", 0)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(words(rows * ROW))
    (folder / "bob" / "picture.png").write_bytes(b"\xff\xfe")
    passages = load(DataSpec(folder), target, tokenizer, at_most=12)
    assert Counter(one.client for one in passages) == {"ann": 3, "bob": 2, "corpus": 1}


def test_the_target_goes_on_from_prompts_at_the_served_temperatures_in_turn(
    tmp_path: Path, target: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    """Prompts are half a row at most, shorter ones are kept whole, and taken again where there are too few."""
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": words(count, first), "client": "ann"} for count, first in ((30, 1), (4, 50))]
    file.write_text("\n".join(map(json.dumps, [*lines, {"prompt": " ", "client": "ann"}])))
    passages = load(DataSpec(file, kind="write"), target, tokenizer, at_most=9)
    assert len(passages) == 9
    assert Counter(one.temperature for one in passages) == dict.fromkeys(TEMPERATURES, 3)
    assert {one.start for one in passages} == {ROW // 2, 4}
    for one in passages:
        assert one.client == "ann"
        assert (len(one.tokens), one.known) == (ROW, ROW - one.start)
        first = 1 if one.start == ROW // 2 else 50
        assert one.tokens[: one.start].tolist() == list(range(first, first + one.start))
        if one.temperature == 0:
            assert one.tokens[one.start :].tolist() == one.support[:, 0].tolist()


def test_written_text_has_the_targets_own_distribution(target: PreTrainedModel) -> None:
    """Greedy text is that of whole passes without a cache; drawn text falls where the target puts it."""
    prompts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    greedy = write_texts(target, prompts, 5, 0.0, torch.Generator())
    plain = prompts
    with torch.no_grad():
        for _ in range(5):
            plain = torch.cat([plain, target(input_ids=plain).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(greedy, plain)
        drawn = write_texts(target, prompts[:1].expand(4000, -1), 1, 0.7, torch.Generator().manual_seed(0))[:, -1]
        p = (target(input_ids=prompts[:1]).logits[0, -1] / 0.7).softmax(-1)
    error = (p * (1 - p) / 4000).sqrt()
    assert ((torch.bincount(drawn, minlength=VOCAB) / 4000 - p).abs() < 4 * error + 1e-3).all()


def test_texts_are_read_alike_in_pieces(target: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = torch.randint(VOCAB, (5, 9), generator=torch.Generator().manual_seed(0))
    whole = read_texts(target, texts, start=4, client="a", domain="d", temperature=0.7, support=8)
    monkeypatch.setattr("goodspeed.tuning.teaching._READ_TOKENS", 18)
    for one, other in zip(whole, read_texts(target, texts, start=4, support=8), strict=True):
        assert np.array_equal(one.support, other.support)
        np.testing.assert_allclose(one.log_p, other.log_p, rtol=1e-2)
        assert (one.client, one.domain, one.temperature, one.start, one.known) == ("a", "d", 0.7, 4, 5)


# Recorded shards


def test_shards_are_read_as_they_are(tmp_path: Path, target: PreTrainedModel, tokenizer: Tokenizer) -> None:
    texts = torch.randint(VOCAB, (3, 20), generator=torch.Generator().manual_seed(0))
    recorded = read_texts(target, texts, client="edge")
    write_shard(tmp_path / "0.safetensors", recorded[:1])
    write_shard(tmp_path / "1.safetensors", recorded[1:])
    (tmp_path / "notes.txt").write_text("not read beside shards")
    for path, expected in ((tmp_path, recorded), (tmp_path / "1.safetensors", recorded[1:])):
        read = load(DataSpec(path), target, tokenizer, at_most=1)
        assert [one.tokens.tolist() for one in read] == [one.tokens.tolist() for one in expected]


# What cannot be read


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", b"\xff\xfe\x00", "is no text"),
        ("a.txt", b"", "has no text of 12 tokens: give more of it, or shorter --row-tokens"),
        ("a.txt", b"w1 w2 w3", "has no text of 12 tokens"),
        ("a.jsonl", b'{"text": "w1"}\nhello', "line 2: not a JSON object"),
        ("a.jsonl", b'{"words": "w1"}', "line 1: not a JSON object with a text or a prompt"),
        ("a.jsonl", b'["w1"]', "line 1: not a JSON object"),
        ("a.jsonl", b"3", "line 1: not a JSON object"),
        ("a.jsonl", b'{"text": 5}', "line 1: not a JSON object"),
        ("a.jsonl", b'{"text": ["w1"]}', "line 1: not a JSON object"),
        ("a.jsonl", b"\n\n", "has no text of 12 tokens"),
        ("a.safetensors", b"broken", "cannot be read"),
    ],
)
@pytest.mark.parametrize("whole_folder", [False, True])
def test_data_that_cannot_be_read_is_refused_in_a_sentence(
    tmp_path: Path,
    target: PreTrainedModel,
    tokenizer: Tokenizer,
    name: str,
    content: bytes,
    why: str,
    whole_folder: bool,
) -> None:
    (tmp_path / name).write_bytes(content)
    if whole_folder and name.endswith(".safetensors"):
        why = "none of its 1 shards can be read"
    with pytest.raises(CorruptData, match=why):
        load(DataSpec(tmp_path if whole_folder else tmp_path / name), target, tokenizer)


def test_a_folder_of_nothing_says_what_would_be_read(
    tmp_path: Path, target: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89")
    with pytest.raises(CorruptData, match=r"no recorded shards and no text files \(\.jsonl, \.md, \.py"):
        load(DataSpec(tmp_path), target, tokenizer)
    (tmp_path / "empty.txt").write_text(" ")
    with pytest.raises(CorruptData, match="has no text"):
        load(DataSpec(tmp_path, kind="write"), target, tokenizer)


# Measuring


def test_figures_are_those_of_plain_arithmetic(target: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = reading(1)
    prompts = torch.randint(VOCAB, (4, 3), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("goodspeed.tuning.measuring._READ_TOKENS", 3 * 13)  # a piece is three rows
    for temperature in TEMPERATURES:
        texts = write_texts(target, prompts, 10, temperature, torch.Generator().manual_seed(1))
        figures = measure(target, draft, Sample(texts, 3, temperature), [0, 1, 2])
        with torch.no_grad():
            p, q = (model(input_ids=texts).logits[:, 2:-1].double() for model in (target, draft))
        if temperature == 0:
            p, q = (torch.nn.functional.one_hot(x.argmax(-1), VOCAB).double() for x in (p, q))
        else:
            p, q = ((x / temperature).softmax(-1) for x in (p, q))
        overlap = torch.minimum(p, q).sum(-1)
        token = texts[:, 3:, None]
        ratio = (q.gather(-1, token) / p.gather(-1, token)).squeeze(-1).clamp_max(1)
        assert figures.acceptance == pytest.approx(float(overlap.mean()), abs=1e-6)
        assert figures.length[0] == 1.0
        assert figures.length[1] == pytest.approx(1 + float(overlap.mean()), abs=1e-6)
        two = 1 + overlap[:, :-1] + ratio[:, :-1] * overlap[:, 1:]
        assert figures.length[2] == pytest.approx(float(two.mean()), abs=1e-6)
        if temperature == 0:
            assert figures.coupled == figures.acceptance
        else:
            assert 0 < figures.coupled <= figures.acceptance + 0.2


def test_a_draft_that_is_its_target_is_always_accepted(target: PreTrainedModel) -> None:
    texts = write_texts(target, torch.ones(2, 3, dtype=torch.int64), 9, 1.0, torch.Generator().manual_seed(0))
    figures = measure(target, target, Sample(texts, 3, 1.0), [3])
    assert figures.acceptance == pytest.approx(1.0, abs=1e-6)
    assert figures.coupled == 1.0
    assert figures.length[3] == pytest.approx(4.0, abs=1e-5)

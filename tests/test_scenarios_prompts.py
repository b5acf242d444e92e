"""Prompts of scenarios: files, and data sets from a folder; and what is said where they cannot be had."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from goodspeed.errors import InvalidRequest
from goodspeed.scenarios.prompts import bundled_prompts, load_prompts
from goodspeed.scenarios.scenario import DatasetPrompts

CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def test_bundled_prompts_are_of_all_kinds_from_the_first_on(tmp_path: Path) -> None:
    prompts = load_prompts("bundled", tmp_path)
    assert prompts == bundled_prompts()
    assert {prompt.domain for prompt in prompts[:3]} == {"code", "prose", "tests"}


def test_a_file_is_found_beside_the_scenario(tmp_path: Path) -> None:
    lines = [{"prompt": "Once", "domain": "prose"}, {"messages": CONVERSATION}]
    (tmp_path / "mine.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    prompts = load_prompts("mine.jsonl", tmp_path)
    assert [(prompt.id, prompt.text) for prompt in prompts] == [("mine-1", "Once"), ("mine-3", "Why?")]


def test_a_prompt_may_hold_what_unicode_takes_for_the_end_of_a_line(tmp_path: Path) -> None:
    texts = ["one\u2028two", "a\u0085b", "x\u2029y"]
    content = "\r\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in texts) + "\n"
    (tmp_path / "mine.jsonl").write_text(content, encoding="utf-8", newline="")
    assert [prompt.text for prompt in load_prompts("mine.jsonl", tmp_path)] == texts


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "x"}', '{"prompt": 3}', '{"prompt": ""}', '{"messages": []}'])
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "mine.jsonl").write_text('{"prompt": "x"}\n' + line)
    with pytest.raises(InvalidRequest, match=r"line 2 of .*mine\.jsonl is no prompt: it should be like"):
        load_prompts("mine.jsonl", tmp_path)


def test_a_file_without_prompts_or_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InvalidRequest, match=r"there are no prompts in .*empty\.jsonl"):
        load_prompts("empty.jsonl", tmp_path)
    with pytest.raises(InvalidRequest, match=r"the prompts in .*nowhere\.jsonl cannot be read"):
        load_prompts("nowhere.jsonl", tmp_path)


def test_without_the_library_a_data_set_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidRequest, match=r"gsm8k need the datasets library.*pip install '\.\[bench\]'"):
        load_prompts(DatasetPrompts("openai/gsm8k", "question"), tmp_path)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library, its cache in a folder of the test's, and no network."""
    pytest.importorskip("datasets", reason="pip install '.[bench]'")
    import datasets
    import huggingface_hub

    # Read from the environment when they were imported, and that may be long ago.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("offline")
def test_a_folder_of_files_is_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "sums"
    folder.mkdir()
    rows = [{"question": f"What is {n} + {n}?", "talk": CONVERSATION, "answer": 2 * n} for n in range(5)]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = load_prompts(DatasetPrompts(str(folder), "question", split="test", limit=3), tmp_path)
    assert [(prompt.id, prompt.text) for prompt in prompts] == [(f"sums-{n}", f"What is {n} + {n}?") for n in range(3)]
    talk = load_prompts(DatasetPrompts(str(folder), "talk", split="test"), tmp_path)
    assert [prompt.text for prompt in talk] == ["Why?"] * 5
    for column, sentence in (
        ("qestion", "has no column qestion: there are question, talk, answer"),
        ("answer", "column answer of .* is neither text nor a conversation's messages"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            load_prompts(DatasetPrompts(str(folder), column, split="test"), tmp_path)
    with pytest.raises(InvalidRequest, match=r"the data set .*sums cannot be had: .*train"):
        load_prompts(DatasetPrompts(str(folder), "question"), tmp_path)


@pytest.mark.usefixtures("offline")
def test_a_data_set_that_was_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    splits = datasets.load_dataset("json", data_files={"train": str(tmp_path / "rows.jsonl")})
    splits.save_to_disk(tmp_path / "splits")
    splits["train"].save_to_disk(tmp_path / "rows")
    for folder in ("rows", "splits"):
        prompts = load_prompts(DatasetPrompts(str(tmp_path / folder), "prompt"), tmp_path)
        assert [prompt.text for prompt in prompts] == ["a", "b"]


@pytest.mark.usefixtures("offline")
def test_a_hub_that_cannot_be_reached_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"the data set openai/gsm8k cannot be had: .*is the hub in reach"):
        load_prompts(DatasetPrompts("openai/gsm8k", "question", subset="main", split="test"), tmp_path)

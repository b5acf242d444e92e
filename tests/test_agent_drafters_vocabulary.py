"""A drafter that has only a list of tokens to show is compared with the target by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers

from goodspeed.errors import TokenizerMismatch
from goodspeed_agent.agent import Agent
from goodspeed_agent.drafters import NoDrafter, SuffixDrafter
from goodspeed_agent.drafters.vocabulary import TokenLister, check_tokens
from goodspeed_agent.tokenizer import TargetTokenizer, TokenizerCache
from tests.linking import QUICK
from tests.serving import serving, tiny_tokenizer
from tests.tiny_models import VOCAB

WORDS = [f"w{token}" for token in range(VOCAB)]


@dataclass(frozen=True, slots=True)
class Lister(SuffixDrafter):
    """Drafts as the suffix drafter does, in a vocabulary."""

    tokens: Sequence[str] = ()


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "b", "[PAD2]", "[PAD3]"], ["a", "b"]),
        (["a", "[PAD1]", "b"], ["a", None, "b"]),
        (["\u2581the", "  "], ["\u2581the", "\u2581\u2581"]),
    ],
)
def test_the_same_tokens_with_padding_behind_them(tokens: list[str], wanted: list[str | None]) -> None:
    check_tokens("draft", tokens, "target", wanted)


@pytest.mark.parametrize(
    ("tokens", "wanted", "sentence"),
    [
        (["a"], ["a", "b"], "the draft 'd.gguf' knows 1 tokens and 'big' 2"),
        (["a", "c", "b"], ["a", "b", "c"], "2 of 3 tokens are others, token 1 is 'c' there and 'b' to the target"),
        (["x", "b", "c"], ["a", "b", "c"], "1 of 3 tokens are others, token 0 is 'x' there and 'a' to the target"),
    ],
)
def test_others_are_named(tokens: list[str], wanted: list[str | None], sentence: str) -> None:
    with pytest.raises(TokenizerMismatch, match=sentence) as caught:
        check_tokens("d.gguf", tokens, "big", wanted)
    assert "choose a GGUF of the target's family, or --draft suffix" in str(caught.value)


def test_a_tokenizer_spells_every_id_it_knows() -> None:
    assert TargetTokenizer(tiny_tokenizer()).tokens == WORDS
    hub = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 3}, []))
    hub.add_special_tokens(["<|end|>"])
    gaps = TargetTokenizer({"tokenizer.json": hub.to_str().encode(), "tokenizer_config.json": b"{}"})
    assert gaps.tokens[0] == "a"
    assert gaps.tokens[1] is None
    assert {text for text in gaps.tokens if text} == {"a", "b", "<|end|>"}
    assert gaps.tokens[gaps.highest_token] is not None


def test_drafters_that_fit_every_target_list_nothing() -> None:
    assert not isinstance(SuffixDrafter(), TokenLister)
    assert not isinstance(NoDrafter(), TokenLister)
    assert isinstance(Lister(tokens=WORDS), TokenLister)


async def test_an_agent_takes_a_vocabulary_that_is_the_targets_and_no_other(tmp_path: Path) -> None:
    async with serving() as (server, address):
        cache = TokenizerCache(tmp_path)
        async with Agent(address, Lister("lister", tokens=[*WORDS, "padding"]), cache=cache, backoff=QUICK) as agent:
            with pytest.raises(TokenizerMismatch, match="token 5 is 'W5' there and 'w5' to the target"):
                await agent.swap(Lister(tokens=[word if word != "w5" else "W5" for word in WORDS]))
            assert agent.drafter == "lister"
            assert [row.drafter for row in server.snapshot().agents] == ["lister"]
        with pytest.raises(TokenizerMismatch, match=f"knows 3 tokens and .* {VOCAB}"):
            await Agent(address, Lister(tokens=WORDS[:3]), cache=cache, backoff=QUICK).__aenter__()

"""Drafting with llama.cpp, on GGUF files that are written here, held against transformers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from bench.gguf import write_gguf
from goodspeed.errors import TokenizerMismatch, UnknownModel, UnsupportedModel
from goodspeed.sampling import SamplingParams
from goodspeed.verification import RATIO_TOP_K, Rule, unpack_q
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.doctor import examination
from goodspeed_agent.drafters import DraftSession, NoDrafter
from goodspeed_agent.drafters.gguf import GgufDrafter
from goodspeed_agent.drafters.llama import ContextPool, LlamaContext, LlamaModel
from goodspeed_agent.drafters.model import ModelDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from tests.gguf_files import require_llama_cpp, tiny_cohere2, tiny_mamba, word_tokens
from tests.linking import QUICK
from tests.serving import serving, tiny_settings
from tests.tiny_models import CONTEXT, VOCAB, tiny_llama

require_llama_cpp()

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79]
WARM = SamplingParams(temperature=0.8, top_p=0.95, seed=11)
BENT = SamplingParams(frequency_penalty=1.5, presence_penalty=0.5, logit_bias=((7, 2.0), (65, -100.0)))
TOLERANCE = 0.01
"""Keys and values are kept in 16 bits."""
MODELS = pytest.mark.parametrize("make", [tiny_llama, tiny_cohere2, tiny_mamba])

Make = Callable[[], PreTrainedModel]
Load = Callable[[Make], GgufDrafter]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where GGUF files are written."""
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    """Writes a model as a file, once, and loads it."""

    @cache
    def loaded(make: Make) -> GgufDrafter:
        file = write_gguf(folder / f"{make.__name__}.gguf", make(), word_tokens())
        return GgufDrafter.load(str(file), threads=1)

    return loaded


def opened(
    drafter: GgufDrafter, params: SamplingParams | None = None, rule: Rule = "coupled", vocab_size: int = VOCAB
) -> DraftSession:
    return drafter.open(params or SamplingParams(), rule=rule, vocab_size=vocab_size, prompt_tokens=len(PROMPT))


def guessed(session: DraftSession, tokens: Sequence[int], count: int) -> list[int]:
    return [guess.token for guess in islice(session.guesses(tokens), count)]


@torch.inference_mode()
def logits_after(model: PreTrainedModel, tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    logits: torch.Tensor = model(input_ids=torch.tensor([list(tokens)])).logits[0, -1]
    return logits.numpy()


@MODELS
@pytest.mark.parametrize("length", [1, 8, 60])
def test_logits_are_those_of_transformers(load: Load, make: Make, length: int) -> None:
    tokens = [(7 * i * i + 3) % VOCAB for i in range(length)]
    context = LlamaContext(load(make)._model, 256)
    np.testing.assert_allclose(context.logits_after(tokens), logits_after(make(), tokens), atol=TOLERANCE)


@pytest.mark.parametrize("rule", ["coupled", "ratio"])
@pytest.mark.parametrize("params", [SamplingParams(), WARM, SamplingParams(temperature=1.2, seed=5), BENT])
def test_guesses_are_those_of_transformers(
    load: Load, params: SamplingParams, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goodspeed.rules.Ratio._unused", lambda self: 5)  # both draw with the same noise
    theirs = ModelDrafter(tiny_llama(), "tiny", None).open(
        params, rule=rule, vocab_size=VOCAB, prompt_tokens=len(PROMPT)
    )
    expected = list(islice(theirs.guesses(PROMPT), 12))
    guesses = list(islice(opened(load(tiny_llama), params, rule).guesses(PROMPT), 12))
    assert [guess.token for guess in guesses] == [guess.token for guess in expected]
    assert [guess.confidence for guess in guesses] == pytest.approx([g.confidence for g in expected], abs=TOLERANCE)
    for guess in guesses:
        assert bool(guess.q) == (rule == "ratio")
        if rule == "ratio":
            (q,) = unpack_q(guess.q, [guess.token], VOCAB)
            assert len(q.tokens) <= RATIO_TOP_K


@MODELS
def test_greedy_guesses_are_transformers_own_text(load: Load, make: Make) -> None:
    whole = make().generate(torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False)  # type: ignore[operator]
    assert guessed(opened(load(make)), PROMPT, 40) == whole[0, len(PROMPT) :].tolist()


Steps = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, VOCAB - 1)), min_size=1, max_size=8)


@MODELS
@pytest.mark.parametrize("params", [SamplingParams(), WARM])
def test_rewinding_leaves_no_trace(load: Load, make: Make, params: SamplingParams) -> None:
    """Of whatever was accepted and rejected; far beyond a sliding window, and of a state that cannot be rewound."""
    drafter = load(make)

    @given(Steps, st.integers(0, 50))
    @settings(max_examples=25)
    def check(steps: list[tuple[int, int, int]], back: int) -> None:
        used, text = opened(drafter, params), list(PROMPT)
        for budget, accepted, other in steps:
            guesses = guessed(used, text, budget)
            assert guesses == guessed(opened(drafter, params), text, budget)
            text += [*guesses[:accepted], other]
        text = [*text[: max(1, len(text) - back)], 5]
        assert guessed(used, text, 3) == guessed(opened(drafter, params), text, 3)

    check()


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens went through a model at a time."""
    fed: list[int] = []
    decode = LlamaContext._decode

    def counted(self: LlamaContext, tokens: Sequence[int]) -> None:
        fed.append(len(tokens))
        decode(self, tokens)

    monkeypatch.setattr(LlamaContext, "_decode", counted)
    return fed


def test_what_a_sliding_window_has_left_behind_is_still_there_to_go_back_to(folder: Path, fed: list[int]) -> None:
    model = tiny_cohere2(context=2048)
    context = LlamaContext(LlamaModel(write_gguf(folder / "sliding.gguf", model, word_tokens())), 2048)
    text = [(7 * i * i + 3) % VOCAB for i in range(1200)]
    context.logits_after(text)
    fed.clear()
    back = [*text[:500], 5]
    np.testing.assert_allclose(context.logits_after(back), logits_after(model, back), atol=TOLERANCE)
    assert fed == [1]
    # A copy in a larger context lacks it, and is made anew.
    context.logits_after(text)
    larger = LlamaContext(context._model, 4096)
    larger.take_over(context)
    fed.clear()
    np.testing.assert_allclose(larger.logits_after(back), logits_after(model, back), atol=TOLERANCE)
    assert fed == [256, 245]


def test_only_what_is_new_goes_through_the_model(load: Load, fed: list[int]) -> None:
    for make, again in ((tiny_llama, [2, 1]), (tiny_cohere2, [2, 1]), (tiny_mamba, [12, 1])):
        used = opened(load(make))
        fed.clear()
        guess = guessed(used, PROMPT, 4)
        assert fed == [8, 1, 1, 1]
        fed.clear()
        guessed(used, [*PROMPT, *guess[:2], (guess[2] + 1) % VOCAB, 5], 2)
        assert fed == again


def test_a_long_prompt_goes_through_in_pieces_and_contexts_grow(folder: Path) -> None:
    model = tiny_llama(max_position_embeddings=4096)
    drafter = GgufDrafter(LlamaModel(write_gguf(folder / "long.gguf", model, word_tokens())), "long", threads=1)
    prompt = [(7 * i * i + 3) % VOCAB for i in range(1022)]
    used = opened(drafter)
    assert len(guessed(used, prompt[:300], 1)) == 1
    assert drafter._pool.held == 1024
    guess = guessed(used, prompt, 6)
    assert drafter._pool.held == 2048
    text = list(prompt)
    for token in guess:
        assert token == int(logits_after(model, text).argmax())
        text.append(token)


def test_where_the_models_context_ends_the_draft_ends(load: Load) -> None:
    used = opened(load(tiny_llama))
    prompt = [i % VOCAB for i in range(CONTEXT - 3)]
    assert len(guessed(used, prompt, 9)) == 3
    assert guessed(used, [*prompt, 1, 2, 3], 9) == []
    assert guessed(used, [*prompt, 1, 2, 3, 4, 5], 9) == []
    assert len(guessed(used, prompt, 9)) == 3


def test_no_token_beyond_the_targets_vocabulary_is_drafted_and_none_behind_one_that_only_the_target_has(
    load: Load,
) -> None:
    hot = SamplingParams(temperature=5.0, seed=2)
    tokens = guessed(opened(load(tiny_llama), hot, vocab_size=10), [1, 2, 3], 40)
    assert max(tokens) < 10
    assert len(set(tokens)) > 5
    larger = opened(load(tiny_llama), SamplingParams(temperature=5.0, logit_bias=((120, 50.0),)), vocab_size=128)
    assert max(guessed(larger, [1, 2, 3], 40)) < VOCAB
    assert guessed(larger, [1, 120, 3], 4) == []


@pytest.fixture
def crowded(load: Load) -> tuple[GgufDrafter, ContextPool]:
    """Room for two texts, and it."""
    drafter = GgufDrafter(load(tiny_llama)._model, "crowded", threads=1)
    drafter._pool = ContextPool(drafter._model, 2 * CONTEXT, threads=1)
    return drafter, drafter._pool


def test_texts_share_the_weights_and_a_bound_on_their_memory(
    load: Load, crowded: tuple[GgufDrafter, ContextPool], fed: list[int]
) -> None:
    drafter, pool = crowded
    expected = guessed(opened(load(tiny_llama)), PROMPT, 12)
    streams = [opened(drafter) for _ in range(3)]
    fed.clear()
    drafting = [stream.guesses(PROMPT) for stream in streams]
    for token in expected:
        assert [guess.token for guesses in drafting for guess in islice(guesses, 1)] == [token, token]
    assert pool.held == 2 * CONTEXT
    assert fed == [8, 8] + 22 * [1], "those at work do not take each other's room"
    del streams[0], drafting[0]
    assert guessed(streams[1], PROMPT, 12) == expected
    del streams, drafting
    assert pool.held == 0


def test_who_is_not_at_work_makes_room_and_is_computed_again(
    load: Load, crowded: tuple[GgufDrafter, ContextPool], monkeypatch: pytest.MonkeyPatch, fed: list[int]
) -> None:
    monkeypatch.setattr("goodspeed_agent.drafters.llama._IDLE_USES", 6)
    drafter, pool = crowded
    expected = guessed(opened(load(tiny_llama)), PROMPT, 12)
    first, second, third = (opened(drafter) for _ in range(3))
    half = first.guesses(PROMPT)
    assert [next(half).token for _ in range(4)] == expected[:4]
    assert guessed(second, PROMPT, 6) == expected[:6]
    fed.clear()
    assert guessed(third, PROMPT, 6) == expected[:6]
    assert guessed(second, PROMPT, 2) == expected[:2]
    assert fed[0] == 8
    assert list(half) == []
    assert guessed(second, PROMPT, 5) == expected[:5]
    fed.clear()
    assert guessed(first, [*PROMPT, *expected[:4]], 2) == expected[4:6]
    assert fed == [12, 1]
    assert pool.held == 2 * CONTEXT


def test_a_context_is_bounded_by_the_memory_there_is(load: Load) -> None:
    small = GgufDrafter(load(tiny_llama)._model, "small", threads=1, kv_bytes=1)
    assert small.context == CONTEXT  # The smallest context there is holds more.
    assert len(guessed(opened(small), PROMPT, 4)) == 4


def test_a_state_that_cannot_be_taken_over_is_computed_again(load: Load, fed: list[int]) -> None:
    model = load(tiny_llama)._model
    first, second, small = (LlamaContext(model, cells) for cells in (512, 512, 256))
    text = [(7 * i * i + 3) % VOCAB for i in range(300)]
    first.logits_after(text)
    second.take_over(first)
    small.take_over(first)
    fed.clear()
    another = [*text[:200], 5]
    expected = second.logits_after(another).copy()
    np.testing.assert_allclose(small.logits_after(another), expected, atol=TOLERANCE)
    assert fed == [1, 201]


def test_a_decoding_that_fails_leaves_a_context_that_works(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    context = LlamaContext(load(tiny_llama)._model, 256)
    expected = context.logits_after(PROMPT).copy()
    with pytest.raises(RuntimeError, match="decoding failed with -1"):
        context.logits_after([*PROMPT, VOCAB + 5])
    np.testing.assert_allclose(context.logits_after(PROMPT), expected, atol=1e-5)


def test_threads_are_measured_unless_somebody_says_how_many(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    model = load(tiny_llama)._model
    with caplog.at_level(logging.INFO, "goodspeed_agent"):
        assert GgufDrafter(model, "measured").threads >= 1
    assert "a token takes" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "goodspeed_agent"):
        assert GgufDrafter(model, "told", threads=3).threads == 3
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("kept", "reason"), [(4, "failed to read"), (40, ""), (700, ""), (-1000, "not within the file bounds")]
)
def test_a_file_that_is_cut_off(
    folder: Path, load: Load, kept: int, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    load(tiny_llama)
    file = folder / "cut.gguf"
    file.write_bytes((folder / "tiny_llama.gguf").read_bytes()[:kept])
    with pytest.raises(UnknownModel, match=f"llama.cpp cannot load .*{reason}.*: copy it again"):
        GgufDrafter.load(str(file))
    assert capfd.readouterr() == ("", "")


def test_a_model_without_a_vocabulary(folder: Path) -> None:
    file = write_gguf(folder / "no-vocabulary.gguf", tiny_llama(), None)
    with pytest.raises(UnsupportedModel, match="has no vocabulary"):
        GgufDrafter.load(str(file))


@pytest.mark.parametrize("kind", ["pools", "sees the future"])
def test_a_model_for_embeddings(folder: Path, kind: str) -> None:
    import gguf

    def describe(writer: Any) -> None:
        if kind == "pools":
            writer.add_pooling_type(gguf.PoolingType.LAST)
        else:
            writer.add_causal_attention(False)

    file = write_gguf(folder / "embeddings.gguf", tiny_llama(), word_tokens(), describe)
    with pytest.raises(UnsupportedModel, match="is a model for embeddings"):
        GgufDrafter.load(str(file))


async def test_texts_are_the_targets_own_and_all_of_its_own_drafts_are_accepted(load: Load, tmp_path: Path) -> None:
    requests = [
        TextRequest(" ".join(f"w{(5 * i + start) % VOCAB}" for i in range(6 + start)), params, max_new_tokens=20)
        for start, params in enumerate((SamplingParams(), WARM, BENT))
    ]
    texts = []
    async with serving(tiny_settings(max_streams=3)) as (_, address):
        for drafter in (NoDrafter(), load(tiny_llama), load(tiny_cohere2)):
            async with Agent(address, drafter, cache=TokenizerCache(tmp_path), backoff=QUICK) as agent:
                completions = await asyncio.gather(*(agent.complete(request) for request in requests))
            texts.append([completion.tokens for completion in completions])
            if drafter is load(tiny_llama):
                assert [completion.speculation.draft_acceptance_rate for completion in completions] == [1.0] * 3
    assert texts == [texts[0]] * 3


async def test_a_draft_of_another_family_is_refused(folder: Path, tmp_path: Path) -> None:
    words = word_tokens()
    words[40] = "forty"
    file = write_gguf(folder / "foreign.gguf", tiny_llama(), words)
    async with serving() as (_, address):
        cache = TokenizerCache(tmp_path)
        drafter = GgufDrafter.load(str(file), threads=1)
        with pytest.raises(TokenizerMismatch, match=r"'foreign\.gguf' .* token 40 is 'forty' there and 'w40'"):
            await Agent(address, drafter, cache=cache, backoff=QUICK).__aenter__()
        smaller = GgufDrafter.load(
            str(write_gguf(folder / "smaller.gguf", tiny_llama(vocab_size=50), word_tokens(50))), threads=1
        )
        async with Agent(address, NoDrafter(), cache=cache, backoff=QUICK) as agent:
            with pytest.raises(TokenizerMismatch, match=r"knows 50 tokens and .* 97"):
                await agent.swap(smaller)
            assert agent.drafter == "none"


async def test_the_doctor_says_that_its_tokens_are_the_targets(load: Load, tmp_path: Path) -> None:
    async with serving() as (_, address):
        findings = await examination(
            lambda drafter: Agent(address, drafter, cache=TokenizerCache(tmp_path), backoff=QUICK),
            lambda: load(tiny_llama),
            lambda finding: None,
        )
    lines = {finding.what: finding for finding in findings}
    assert lines["tokenizer"].value == "of tiny_llama.gguf: the same as the target's"
    assert "100% of them accepted" in lines["budget"].value

"""Penalties and biases: by hand, whatever was drafted, under both rules and on both sides."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.errors import InvalidRequest
from goodspeed.sampling import SamplingParams
from goodspeed.sampling.bending import bend
from goodspeed.verification import Rule
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.drafters import Drafter, NoDrafter, SuffixDrafter
from goodspeed_agent.drafters.model import ModelDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from tests.serving import linked, serving, tiny_settings
from tests.tiny_models import VOCAB, tiny_llama

PROMPT = [5, 17, 3, 60, 2]
BENT = SamplingParams(frequency_penalty=0.7, presence_penalty=-0.4, logit_bias=((7, 1.5), (9, -100.0)))

tokens = st.integers(0, VOCAB - 1)
penalties = st.floats(-2, 2, width=32)


@given(
    st.lists(tokens, max_size=12),
    st.lists(tokens, max_size=5),
    penalties,
    penalties,
    st.dictionaries(tokens, st.floats(-100, 100, width=32), max_size=3),
)
def test_every_row_is_bent_by_what_stands_before_it(
    generated: list[int], drafted: list[int], frequency: float, presence: float, biases: dict[int, float]
) -> None:
    params = SamplingParams(frequency_penalty=frequency, presence_penalty=presence, logit_bias=tuple(biases.items()))
    logits = torch.randn(len(drafted) + 1, VOCAB, generator=torch.Generator().manual_seed(0))
    bent = logits.clone()
    bend(bent, params, generated, drafted)
    for row in range(len(logits)):
        counts = Counter([*generated, *drafted[:row]])
        for token in range(VOCAB):
            less = counts[token] * frequency + (counts[token] > 0) * presence
            expected = float(logits[row, token]) + biases.get(token, 0.0) - less
            assert float(bent[row, token]) == pytest.approx(expected, abs=1e-4)
        # The same, to the last bit, if the draft had come in other pieces.
        alone = logits[row : row + 1].clone()
        bend(alone, params, [*generated, *drafted[:row]], [])
        assert torch.equal(alone[0], bent[row])
    without_torch = logits.numpy().copy()
    bend(without_torch, params, generated, drafted)
    assert (without_torch == bent.numpy()).all()


def by_hand(count: int) -> list[int]:
    """Greedy text of the tiny target under `BENT`."""
    model, text = tiny_llama(), list(PROMPT)
    with torch.inference_mode():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([text])).logits[0, -1]
            for token, times in Counter(text[len(PROMPT) :]).items():
                logits[token] -= 0.7 * times - 0.4
            logits[7] += 1.5
            logits[9] -= 100.0
            text.append(int(logits.argmax()))
    return text[len(PROMPT) :]


@pytest.mark.parametrize("rule", ["coupled", "ratio"])
async def test_a_greedy_text_is_the_bent_targets_whatever_was_drafted(rule: Rule) -> None:
    expected = by_hand(24)
    plain = SamplingParams()
    async with serving(tiny_settings(rule=rule)) as (_, address), linked(address) as peer:
        assert await peer.generate(1, PROMPT, max_draft=0, max_new_tokens=24, params=BENT) == expected
        assert await peer.generate(2, PROMPT, max_draft=0, max_new_tokens=24, params=plain) != expected


WORDS = " ".join(f"w{token}" for token in PROMPT)


async def text(address: str, drafter: Drafter, params: SamplingParams, folder: Path) -> tuple[list[int], float]:
    """The tokens, and the share of drafted ones that were accepted."""
    async with Agent(address, drafter, cache=TokenizerCache(folder)) as agent:
        completion = await agent.complete(TextRequest(WORDS, params, max_new_tokens=24, ignore_eos=True))
    return completion.tokens, completion.speculation.draft_acceptance_rate or 0.0


@pytest.mark.parametrize("rounds", ["barrier", "rolling"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
async def test_the_text_is_the_same_with_every_drafter(rounds: str, temperature: float, tmp_path: Path) -> None:
    params = SamplingParams(
        temperature, 0.95, seed=4, frequency_penalty=0.7, presence_penalty=-0.4, logit_bias=BENT.logit_bias
    )
    settings = tiny_settings(scheduler="goodspeed" if rounds == "barrier" else "seconds", rounds={"rounds": rounds})
    same = ModelDrafter(tiny_llama(), "same", None)
    async with serving(settings) as (_, address):
        expected, _ = await text(address, NoDrafter(), params, tmp_path)
        if temperature == 0.0:
            assert expected == by_hand(24)
        for drafter in (SuffixDrafter(), ModelDrafter(tiny_llama(seed=5), "stranger", None), same):
            written, accepted = await text(address, drafter, params, tmp_path)
            assert written == expected
        # An agent that bends as the server does, and has the target itself to draft with, is always right.
        if rounds == "barrier":
            assert accepted == 1.0


@pytest.mark.parametrize("rule", ["coupled", "ratio"])
@pytest.mark.parametrize("seed", [0, 5])
async def test_a_link_that_is_lost_changes_nothing_of_it(rule: Rule, seed: int, tmp_path: Path) -> None:
    drafter = ModelDrafter(tiny_llama(seed=seed), "a draft", None)
    agent_of = partial(Agent, drafter=drafter, cache=TokenizerCache(tmp_path))
    async with serving(tiny_settings(rule=rule)) as (server, address), agent_of(address) as agent:
        heard = 0

        def cut(_: Piece) -> None:
            nonlocal heard
            heard += 1
            if heard == 2:
                for link in list(server._links):
                    link.abort()

        request = TextRequest(WORDS, BENT, max_new_tokens=24, ignore_eos=True, logprobs=2)
        completion = await agent.complete(request, cut)
        assert agent.link.reconnections == 1
    assert completion.tokens == by_hand(24)
    assert completion.speculation.num_draft_tokens > 0
    assert len(completion.logprobs) == 24
    assert None not in completion.logprobs


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        (SamplingParams(frequency_penalty=2.5), "frequency_penalty is 2.5: it must be between -2 and 2"),
        (SamplingParams(presence_penalty=float("nan")), "presence_penalty is nan"),
        (SamplingParams(logit_bias=((1, 101.0),)), "logit_bias of token 1 is 101"),
        (SamplingParams(logit_bias=((1, 1.0), (1, 2.0))), "names token 1 twice"),
    ],
)
def test_values_out_of_range_are_named(params: SamplingParams, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        params.validate()


async def test_a_bias_of_a_token_that_is_none_is_refused() -> None:
    async with serving() as (_, address), linked(address) as peer:
        params = SamplingParams(logit_bias=((VOCAB, 1.0),))
        with pytest.raises(AssertionError, match="token_out_of_range"):
            await peer.open(1, PROMPT, params=params)

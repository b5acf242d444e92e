"""Log-probabilities: packed and unpacked, and the target's own through every kind of round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from goodspeed.errors import InvalidRequest, ProtocolError
from goodspeed.logprobs import TokenLogprobs, entry_bytes, pack_logprobs, unpack_logprobs
from goodspeed.messages import Open
from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import Agent, Piece, TextRequest
from goodspeed_agent.drafters import Drafter, NoDrafter
from goodspeed_agent.drafters.model import ModelDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from tests.serving import linked, serving, tiny_settings
from tests.tiny_models import tiny_llama

PROMPT = [5, 17, 3]
WORDS = "w5 w17 w3"


@pytest.mark.parametrize("alternatives", [0, 1, 5])
def test_entries_come_back_as_they_were(alternatives: int) -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    tokens = [3, 3, 49, 0]
    packed = pack_logprobs(logits, tokens, alternatives)
    assert len(packed) == 4 * entry_bytes(alternatives)
    log_p = logits.log_softmax(-1)
    for row, known in enumerate(unpack_logprobs(packed, alternatives)):
        assert known.logprob == pytest.approx(float(log_p[row, tokens[row]]), abs=1e-6)
        top, ids = log_p[row].topk(alternatives)
        assert [token for token, _ in known.alternatives] == ids.tolist()
        assert [value for _, value in known.alternatives] == pytest.approx(top.tolist(), abs=1e-6)
    with pytest.raises(ProtocolError, match="bytes of log-probabilities"):
        unpack_logprobs(packed[:-1], alternatives)


@pytest.mark.parametrize("rounds", ["barrier", "rolling"])
async def test_every_token_comes_with_what_the_target_thought_of_it(rounds: str, tmp_path: Path) -> None:
    # They are of the target itself, whatever bends what is drawn.
    params = SamplingParams(0.8, 0.9, seed=2, frequency_penalty=0.5)
    request = TextRequest(WORDS, params, max_new_tokens=20, ignore_eos=True, logprobs=3)
    settings = tiny_settings(scheduler="goodspeed" if rounds == "barrier" else "seconds", rounds={"rounds": rounds})
    drafters: tuple[Drafter, ...] = (NoDrafter(), ModelDrafter(tiny_llama(seed=5), "stranger", None))
    async with serving(settings) as (_, address):
        for drafter in drafters:
            pieces: list[Piece] = []
            async with Agent(address, drafter, cache=TokenizerCache(tmp_path)) as agent:
                completion = await agent.complete(request, pieces.append)
            text = [*PROMPT, *completion.tokens]
            with torch.inference_mode():
                log_p = tiny_llama()(input_ids=torch.tensor([text])).logits[0].log_softmax(-1)
            known = list(completion.logprobs)
            assert [one for piece in pieces for one in piece.logprobs] == known
            assert len(known) == 20
            for place, one in enumerate(known, len(PROMPT)):
                assert isinstance(one, TokenLogprobs)
                assert one.logprob == pytest.approx(float(log_p[place - 1, text[place]]), abs=1e-3)
                top = log_p[place - 1].topk(3)
                assert [value for _, value in one.alternatives] == pytest.approx(top.values.tolist(), abs=1e-3)


@pytest.mark.parametrize("value", [float("nan"), 0.5, float("inf")])
def test_what_is_no_log_probability_is_refused(value: float) -> None:
    packed = np.array([value], "<f4").tobytes()
    with pytest.raises(ProtocolError, match="a log-probability is none"):
        unpack_logprobs(packed, 0)
    assert unpack_logprobs(np.array([-np.inf], "<f4").tobytes(), 0)[0].logprob == -9999.0


async def test_who_asks_for_none_is_sent_none(tmp_path: Path) -> None:
    async with serving() as (_, address), Agent(address, NoDrafter(), cache=TokenizerCache(tmp_path)) as agent:
        assert list((await agent.complete(TextRequest(WORDS, max_new_tokens=4))).logprobs) == []


async def test_more_alternatives_than_there_may_be_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="21 alternatives"):
        TextRequest(WORDS, logprobs=21).validate()
    async with serving() as (_, address), linked(address) as peer:
        await peer.send(Open(1, PROMPT, 3, SamplingParams(), 8, 0, logprobs=21))
        assert (await peer.failure()).code == "invalid_request"

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from goodspeed import catalog
from goodspeed.errors import UnknownModel
from goodspeed.sampling import SamplingParams, position_keys
from goodspeed.sampling.warping import RowParams, log_probs, sample
from goodspeed.verification import RATIO_TOP_K, Rule, draw_drafted, quantise, unpack_q
from goodspeed_agent.drafters.model import ModelDrafter, ModelSession
from tests.fake_server import byte_tokenizer
from tests.tiny_models import CONTEXT, VOCAB, tiny_llama, tiny_mistral, tiny_qwen3

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79]
WARM = SamplingParams(temperature=0.8, top_p=0.95, seed=11)
MODELS = pytest.mark.parametrize("make", [tiny_llama, tiny_qwen3, tiny_mistral])


def session(
    model: PreTrainedModel, params: SamplingParams | None = None, rule: Rule = "coupled", vocab_size: int = VOCAB
) -> ModelSession:
    opened = ModelDrafter(model, "tiny", None).open(params or SamplingParams(), rule=rule, vocab_size=vocab_size)
    assert isinstance(opened, ModelSession)
    return opened


@torch.inference_mode()
def logits_after(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([tokens])).logits[:, -1]
    return logits


def plain(model: PreTrainedModel, tokens: list[int], count: int, params: SamplingParams) -> list[int]:
    """Draw `count` tokens, each with a forward over everything."""
    text = list(tokens)
    for _ in range(count):
        keys = torch.from_numpy(position_keys([params.seed], [len(text)]))
        text.append(int(sample(logits_after(model, text), RowParams.of([params]), keys)))
    return text[len(tokens) :]


@MODELS
@pytest.mark.parametrize("params", [SamplingParams(), WARM, SamplingParams(temperature=1.2, seed=5)])
def test_a_draft_is_what_the_model_says(make: Callable[[], PreTrainedModel], params: SamplingParams) -> None:
    model = make()
    assert session(model, params).draft(PROMPT, 9).tokens == plain(model, PROMPT, 9, params)


def test_greedy_drafts_are_transformers_own() -> None:
    model = tiny_llama()
    whole = model.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)  # type: ignore[operator]
    assert session(model).draft(PROMPT, 12).tokens == whole[0, len(PROMPT) :].tolist()


@MODELS
@pytest.mark.parametrize("params", [SamplingParams(), WARM])
def test_rolling_back_leaves_no_trace(make: Callable[[], PreTrainedModel], params: SamplingParams) -> None:
    model = make()
    used = session(model, params)
    text = list(PROMPT)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        budget = int(torch.randint(1, 6, (), generator=generator))
        guess = used.draft(text, budget).tokens
        assert guess == session(model, params).draft(text, budget).tokens
        accepted = int(torch.randint(0, budget + 1, (), generator=generator))
        text += [*guess[:accepted], int(torch.randint(0, VOCAB, (), generator=generator))]


def test_only_what_is_new_goes_through_the_model() -> None:
    model = tiny_llama()
    used = session(model)
    fed: list[int] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: fed.append(kwargs["input_ids"].shape[-1]), with_kwargs=True)
    guess = used.draft(PROMPT, 3).tokens
    assert fed == [8, 1, 1]
    fed.clear()
    used.draft([*PROMPT, *guess, 5], 2)
    assert fed == [2, 1]
    fed.clear()
    used.draft([*PROMPT, *guess, 5], 1)
    assert fed == [1]


def test_a_long_prompt_goes_through_in_pieces_and_the_cache_grows() -> None:
    model = tiny_llama(max_position_embeddings=2048)
    prompt = [(7 * i * i + 3) % VOCAB for i in range(1100)]
    assert session(model).draft(prompt, 3).tokens == plain(model, prompt, 3, SamplingParams())


def test_where_the_models_context_ends_the_draft_ends() -> None:
    model = tiny_llama()
    used = session(model)
    prompt = [i % VOCAB for i in range(CONTEXT - 3)]
    assert len(used.draft(prompt, 9).tokens) == 3
    assert used.draft([*prompt, 1, 2, 3], 9).tokens == []
    assert used.draft([*prompt, 1, 2, 3, 4, 5], 9).tokens == []


def test_no_token_beyond_the_targets_vocabulary_is_drafted() -> None:
    hot = SamplingParams(temperature=5.0, seed=2)
    tokens = session(tiny_llama(), hot, vocab_size=10).draft([1, 2, 3], 40).tokens
    assert max(tokens) < 10
    assert len(set(tokens)) > 5


@pytest.mark.parametrize("params", [SamplingParams(), WARM, SamplingParams(temperature=1.0)])
def test_for_the_ratio_rule_the_token_comes_from_the_distribution_that_is_sent(params: SamplingParams) -> None:
    model = tiny_llama()
    draft = session(model, params, "ratio").draft(PROMPT, 6)
    assert len(draft.tokens) == 6
    text = list(PROMPT)
    for token, q in zip(draft.tokens, unpack_q(draft.q, draft.tokens, VOCAB), strict=True):
        log_q = log_probs(logits_after(model, text), RowParams.of([params]))[0]
        top = log_q.topk(RATIO_TOP_K)
        honest = quantise(top.indices.numpy(), top.values.exp().numpy())
        assert dict(zip(q.tokens, q.weights, strict=True)).keys() == dict.fromkeys(honest.tokens).keys()
        assert abs(q.weights - honest.weights).max() <= 2
        assert token == draw_drafted(q, params.seed, len(text))
        if params.greedy:
            assert q.tokens.tolist() == [token]
        text.append(token)


def test_the_coupled_rule_sends_no_distribution() -> None:
    assert session(tiny_llama(), WARM).draft(PROMPT, 3).q == b""


def test_a_model_is_loaded_with_the_fingerprint_of_its_tokenizer(tmp_path: Path) -> None:
    files = byte_tokenizer()
    tiny_llama(vocab_size=257).save_pretrained(tmp_path)
    for name, contents in files.items():
        (tmp_path / name).write_bytes(contents)
    drafter = ModelDrafter.load(str(tmp_path))
    assert drafter.fingerprint == catalog.fingerprint(files)
    assert drafter.name == str(tmp_path)
    assert torch.get_num_threads() == 1
    guess = drafter.open(SamplingParams(), rule="coupled", vocab_size=257).draft([1, 2, 3], 4)
    assert len(guess.tokens) == 4


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(UnknownModel, match="tokenizer"):
        ModelDrafter.load(str(tmp_path))

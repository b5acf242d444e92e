from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from goodspeed import catalog
from goodspeed.engine import Segment
from goodspeed.errors import ModelError, UnknownModel
from goodspeed.sampling import SamplingParams, position_keys
from goodspeed.sampling.warping import RowParams, log_probs, sample
from goodspeed.verification import RATIO_TOP_K, Rule, draw_drafted, quantise, unpack_q
from goodspeed_agent.drafters import DraftSession, model
from goodspeed_agent.drafters.model import ModelDrafter, ModelSession
from goodspeed_agent.drafters.swappable import Swappable
from tests.fake_server import byte_tokenizer
from tests.tiny_models import CONTEXT, VOCAB, tiny_llama, tiny_mistral, tiny_qwen3

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79]
WARM = SamplingParams(temperature=0.8, top_p=0.95, seed=11)
MODELS = pytest.mark.parametrize("make", [tiny_llama, tiny_qwen3, tiny_mistral])


def session(
    model: PreTrainedModel, params: SamplingParams | None = None, rule: Rule = "coupled", vocab_size: int = VOCAB
) -> ModelSession:
    own = deepcopy(model)  # a drafter's model is its own; ours is the oracle
    opened = ModelDrafter(own, "tiny", None).open(params or SamplingParams(), rule=rule, vocab_size=vocab_size)
    assert isinstance(opened, ModelSession)
    return opened


def guessed(session: DraftSession, tokens: list[int], count: int) -> list[int]:
    return [guess.token for guess in islice(session.guesses(tokens), count)]


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
    assert guessed(session(model, params), PROMPT, 9) == plain(model, PROMPT, 9, params)


def test_greedy_drafts_are_transformers_own() -> None:
    model = tiny_llama()
    whole = model.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)  # type: ignore[operator]
    assert guessed(session(model), PROMPT, 12) == whole[0, len(PROMPT) :].tolist()


@MODELS
@pytest.mark.parametrize("params", [SamplingParams(), WARM])
def test_rolling_back_leaves_no_trace(make: Callable[[], PreTrainedModel], params: SamplingParams) -> None:
    model = make()
    used = session(model, params)
    text = list(PROMPT)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        budget = int(torch.randint(1, 6, (), generator=generator))
        guess = guessed(used, text, budget)
        assert guess == guessed(session(model, params), text, budget)
        accepted = int(torch.randint(0, budget + 1, (), generator=generator))
        text += [*guess[:accepted], int(torch.randint(0, VOCAB, (), generator=generator))]


def test_only_what_is_new_goes_through_the_model() -> None:
    model = tiny_llama()
    fed: list[int] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: fed.append(kwargs["input_ids"].shape[-1]), with_kwargs=True)
    used = session(model)
    fed.clear()
    guess = guessed(used, PROMPT, 3)
    assert fed == [8, 1, 1]
    fed.clear()
    guessed(used, [*PROMPT, *guess, 5], 2)
    assert fed == [2, 1]
    fed.clear()
    guessed(used, [*PROMPT, *guess, 5], 1)
    assert fed == [1]


def test_a_long_prompt_goes_through_in_pieces_and_the_cache_grows() -> None:
    model = tiny_llama(max_position_embeddings=2048)
    prompt = [(7 * i * i + 3) % VOCAB for i in range(1100)]
    assert guessed(session(model), prompt, 3) == plain(model, prompt, 3, SamplingParams())


def guessed_together(
    drafter: ModelDrafter, sessions: Sequence[DraftSession], texts: Sequence[list[int]], count: int
) -> list[list[int]]:
    """Let every session guess so many tokens, each step prepared in one batch."""
    guesses = [session.guesses(list(text)) for session, text in zip(sessions, texts, strict=True)]
    found: list[list[int]] = [[] for _ in sessions]
    for _ in range(count):
        assert all(drafter.prepare(sessions))
        for tokens, more in zip(found, guesses, strict=True):
            tokens.append(next(more).token)
    return found


@MODELS
def test_sessions_that_compute_together_guess_what_each_guesses_alone(make: Callable[[], PreTrainedModel]) -> None:
    drafter = ModelDrafter(make(), "tiny", None)
    params = [SamplingParams(), WARM, SamplingParams(temperature=1.2, seed=5), SamplingParams(presence_penalty=1.5)]
    sessions = [drafter.open(one, rule="coupled", vocab_size=VOCAB, prompt_tokens=2) for one in params]
    texts = [PROMPT[: 2 + n] for n in range(4)]
    generator = torch.Generator().manual_seed(3)
    for _ in range(6):
        expected = [
            guessed(
                ModelDrafter(make(), "alone", None).open(one, rule="coupled", vocab_size=VOCAB, prompt_tokens=2),
                text,
                3,
            )
            for one, text in zip(params, texts, strict=True)
        ]
        found = guessed_together(drafter, sessions, texts, 3)
        assert found == expected
        for text, guess in zip(texts, found, strict=True):
            accepted = int(torch.randint(0, 4, (), generator=generator))
            text += [*guess[:accepted], int(torch.randint(0, VOCAB, (), generator=generator))]


def test_a_prompt_beside_guesses_goes_through_in_small_pieces_and_alone_in_large_ones() -> None:
    model = tiny_llama(max_position_embeddings=2048)
    fed: list[int] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: fed.append(kwargs["input_ids"].shape[-1]), with_kwargs=True)
    drafter = ModelDrafter(model, "tiny", None)
    long, short = (drafter.open(SamplingParams(), rule="coupled", vocab_size=VOCAB) for _ in range(2))
    prompt = [(7 * i * i + 3) % VOCAB for i in range(1300)]
    waiting, going = long.guesses(prompt), short.guesses(PROMPT)
    fed.clear()
    for _ in range(3):
        assert drafter.prepare([long, short]) == [False, True]
        next(going)
    assert fed == [len(PROMPT) + 32, 1 + 32, 1 + 32]
    fed.clear()
    readiness = [False]
    while not all(readiness):
        readiness = drafter.prepare([long])
    assert fed == [512, 512, 1300 - 3 * 32 - 2 * 512]
    assert next(waiting).token == plain(tiny_llama(max_position_embeddings=2048), prompt, 1, SamplingParams())[-1]


def test_of_two_prompts_the_first_is_done_first() -> None:
    drafter = ModelDrafter(tiny_llama(max_position_embeddings=2048), "tiny", None)
    sessions = [drafter.open(SamplingParams(), rule="coupled", vocab_size=VOCAB) for _ in range(2)]
    for length, session in zip((900, 700), sessions, strict=True):
        session.guesses([(7 * i * i + 3) % VOCAB for i in range(length)])
    assert [drafter.prepare(sessions) for _ in range(4)] == [[False, False], [True, False], [True, False], [True, True]]


def test_who_finds_no_row_has_nothing_to_say_until_others_are_idle() -> None:
    drafter = ModelDrafter(tiny_llama(), "tiny", None, together=2)
    first, second, third = (drafter.open(WARM, rule="coupled", vocab_size=VOCAB) for _ in range(3))
    expected = guessed(session(tiny_llama(), WARM), PROMPT, 3)
    assert [guessed(one, PROMPT, 3) for one in (first, second, third)] == [expected, expected, []]
    for n in range(300):
        assert guessed(first, [*PROMPT, n % VOCAB], 1)
    assert guessed(third, PROMPT, 3) == expected, "it has the row of the one that was idle"
    assert guessed(second, PROMPT, 3) == []
    del first
    assert guessed(second, PROMPT, 3) == expected


@pytest.mark.parametrize(("kv_tokens", "rows"), [(512, 1), (1024, 2)])
def test_keys_and_values_keep_to_their_memory(kv_tokens: int, rows: int) -> None:
    model = tiny_llama(max_position_embeddings=2048)
    token_bytes = ModelDrafter(deepcopy(model), "tiny", None)._engine.kv_bytes_per_token
    drafter = ModelDrafter(model, "tiny", None, kv_bytes=kv_tokens * token_bytes)
    long = [(7 * i * i + 3) % VOCAB for i in range(400)]
    sessions = [drafter.open(WARM, rule="coupled", vocab_size=VOCAB) for _ in range(3)]
    spoke = [bool(guessed(one, long, 2)) for one in sessions]
    assert spoke == [number < rows for number in range(3)]
    assert drafter._engine.kv_bytes <= kv_tokens * token_bytes
    assert drafter.context == kv_tokens


def test_room_that_a_long_text_took_is_given_to_others_once_it_is_gone() -> None:
    model = tiny_llama(max_position_embeddings=2048)
    token_bytes = ModelDrafter(deepcopy(model), "tiny", None)._engine.kv_bytes_per_token
    drafter = ModelDrafter(model, "tiny", None, kv_bytes=1024 * token_bytes)
    one = drafter.open(WARM, rule="coupled", vocab_size=VOCAB)
    assert guessed(one, [(7 * i * i + 3) % VOCAB for i in range(900)], 2)
    del one
    sessions = [drafter.open(WARM, rule="coupled", vocab_size=VOCAB) for _ in range(3)]
    expected = guessed(session(model=tiny_llama(max_position_embeddings=2048), params=WARM), PROMPT, 2)
    found = [guessed(each, PROMPT, 2) for each in (*sessions, *sessions)]
    assert found[3:] == [expected] * 3
    assert drafter._engine.kv_bytes <= 1024 * token_bytes


def test_rows_of_sessions_that_are_gone_are_lent_again() -> None:
    drafter = ModelDrafter(tiny_llama(), "tiny", None)
    for n in range(5):
        one = drafter.open(WARM, rule="coupled", vocab_size=VOCAB)
        text = [*PROMPT, n]
        assert guessed(one, text, 2) == guessed(session(tiny_llama(), WARM), text, 2)
        del one
    assert drafter._engine.rows == 1


def test_a_token_that_the_draft_does_not_know_is_named() -> None:
    one = ModelDrafter(tiny_llama(vocab_size=10), "narrow", None).open(WARM, rule="coupled", vocab_size=VOCAB)
    with pytest.raises(ModelError, match="token 12 is beyond the 10 that it knows"):
        one.guesses([3, 12, 4])


def test_where_the_models_context_ends_the_draft_ends() -> None:
    model = tiny_llama()
    used = session(model)
    prompt = [i % VOCAB for i in range(CONTEXT - 3)]
    assert len(guessed(used, prompt, 9)) == 3
    assert guessed(used, [*prompt, 1, 2, 3], 9) == []
    assert guessed(used, [*prompt, 1, 2, 3, 4, 5], 9) == []


def test_no_token_beyond_the_targets_vocabulary_is_drafted() -> None:
    hot = SamplingParams(temperature=5.0, seed=2)
    tokens = guessed(session(tiny_llama(), hot, vocab_size=10), [1, 2, 3], 40)
    assert max(tokens) < 10
    assert len(set(tokens)) > 5


@pytest.mark.parametrize("params", [SamplingParams(), WARM, SamplingParams(temperature=1.0)])
def test_for_the_ratio_rule_the_token_comes_from_the_distribution_that_is_sent(
    params: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goodspeed.rules.Ratio._unused", lambda self: 11)
    model = tiny_llama()
    draft = list(islice(session(model, params, "ratio").guesses(PROMPT), 6))
    assert len(draft) == 6
    text = list(PROMPT)
    for guess in draft:
        token, (q,) = guess.token, unpack_q(guess.q, [guess.token], VOCAB)
        log_q = log_probs(logits_after(model, text), RowParams.of([params]))[0]
        top = log_q.topk(RATIO_TOP_K)
        honest = quantise(top.indices.numpy(), top.values.exp().numpy())
        assert dict(zip(q.tokens, q.weights, strict=True)).keys() == dict.fromkeys(honest.tokens).keys()
        assert abs(q.weights - honest.weights).max() <= 2
        assert token == draw_drafted(q, 11, len(text))
        if params.greedy:
            assert q.tokens.tolist() == [token]
        text.append(token)


def test_the_coupled_rule_sends_no_distribution() -> None:
    assert [guess.q for guess in islice(session(tiny_llama(), WARM).guesses(PROMPT), 3)] == [b""] * 3


def test_a_model_is_loaded_with_the_fingerprint_of_its_tokenizer(tmp_path: Path) -> None:
    files = byte_tokenizer()
    tiny_llama(vocab_size=257).save_pretrained(tmp_path)
    for name, contents in files.items():
        (tmp_path / name).write_bytes(contents)
    drafter = ModelDrafter.load(str(tmp_path))
    assert drafter.fingerprint == catalog.fingerprint(files)
    assert drafter.name == str(tmp_path)
    assert torch.get_num_threads() == 1
    opened = drafter.open(SamplingParams(), rule="coupled", vocab_size=257)
    assert len(guessed(opened, [1, 2, 3], 4)) == 4


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(UnknownModel, match="tokenizer"):
        ModelDrafter.load(str(tmp_path))


def long_prompt() -> list[int]:
    """It takes a model several passes."""
    return [(7 * i * i + 3) % VOCAB for i in range(1300)]


def test_a_draft_that_is_exchanged_in_the_middle_of_a_prompt_ends_there_and_the_other_begins_anew() -> None:
    size = {"max_position_embeddings": 2048}
    first, other = (ModelDrafter(tiny_llama(seed=seed, **size), f"of-{seed}", None) for seed in (0, 5))
    owner = Swappable(first)
    session_of_both = owner.open(SamplingParams(), rule="coupled", vocab_size=VOCAB)
    guesses = session_of_both.guesses(long_prompt())
    assert owner.prepare([session_of_both]) == [False]
    owner.exchange(other)
    assert owner.prepare([session_of_both]) == [True], "nothing more is computed for what nobody reads"
    assert list(guesses) == []
    assert guessed(session_of_both, long_prompt(), 3) == plain(
        tiny_llama(seed=5, **size), long_prompt(), 3, SamplingParams()
    )


def no_memory(drafter: ModelDrafter, patch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Let no slab grow; returns what is asked for from now on."""
    asked: list[tuple[int, int]] = []

    def refuse(rows: int, max_length: int) -> None:
        asked.append((rows, max_length))
        raise torch.OutOfMemoryError(f"{rows} rows of {max_length}")

    patch.setattr(drafter._engine, "resize", refuse)
    return asked


def test_where_there_is_no_memory_for_more_only_who_needs_it_is_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are drafted for in one forward a step, and it is not tried for every guess."""
    drafter = ModelDrafter(tiny_llama(max_position_embeddings=2048), "tiny", None)
    owner = Swappable(drafter)
    *short, long = (owner.open(SamplingParams(), rule="coupled", vocab_size=VOCAB) for _ in range(5))
    prompts = [[*PROMPT, number] for number in range(4)]
    expected = [guessed(session(tiny_llama()), prompt, 8) for prompt in prompts]
    going = [one.guesses(prompt) for one, prompt in zip(short, prompts, strict=True)]
    owner.prepare(short)
    found = [[next(guesses).token] for guesses in going]
    forwards, forward = [], drafter._engine.forward

    def counted(segments: Sequence[Segment]) -> torch.Tensor:
        forwards.append(len(segments))
        return forward(segments)

    monkeypatch.setattr(drafter._engine, "forward", counted)
    asked = no_memory(drafter, monkeypatch)
    for _ in range(7):
        waiting = long.guesses(long_prompt())
        owner.prepare([*short, long])
        assert next(waiting, None) is None
        for guesses, tokens in zip(going, found, strict=True):
            tokens.append(next(guesses).token)
    assert found == expected
    assert forwards == [4] * 7
    assert 0 < len(asked) <= 2
    assert [message for message in caplog.messages if "is broken" in message] == []
    assert len([message for message in caplog.messages if "no memory for more" in message]) == 1


def test_a_text_has_the_room_of_those_that_are_gone_where_there_is_no_memory_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drafter = ModelDrafter(tiny_llama(max_position_embeddings=2048), "tiny", None)
    short = [drafter.open(SamplingParams(), rule="coupled", vocab_size=VOCAB) for _ in range(4)]
    for one in short:
        guessed(one, PROMPT, 1)
    no_memory(drafter, monkeypatch)
    long = drafter.open(SamplingParams(), rule="coupled", vocab_size=VOCAB)
    text = long_prompt()[:600]
    assert guessed(long, text, 3) == []
    del short, one
    assert guessed(long, text, 3) == plain(tiny_llama(max_position_embeddings=2048), text, 3, SamplingParams())


def test_a_cache_that_could_not_grow_grows_once_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = ModelDrafter(tiny_llama(max_position_embeddings=2048), "tiny", None)
    short, long = (drafter.open(SamplingParams(), rule="coupled", vocab_size=VOCAB) for _ in range(2))
    expected = guessed(short, PROMPT, 3)
    monkeypatch.setattr(model, "_RETRY_STEPS", 8)
    with monkeypatch.context() as patch:
        no_memory(drafter, patch)
        assert guessed(long, long_prompt(), 3) == []
    guessed(short, PROMPT, 8)
    assert guessed(long, long_prompt(), 3) == plain(
        tiny_llama(max_position_embeddings=2048), long_prompt(), 3, SamplingParams()
    )
    assert guessed(short, PROMPT, 3) == expected


def test_nobody_at_work_needs_no_room() -> None:
    drafter = ModelDrafter(tiny_llama(), "tiny", None)
    drafter._cramped = True
    assert drafter.prepare([]) == []

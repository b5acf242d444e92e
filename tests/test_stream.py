import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from goodspeed.errors import InvalidRequest, ProtocolError
from goodspeed.messages import Draft, Open, Verdict
from goodspeed.sampling import SamplingParams
from goodspeed.stream import Finish, ServedStream, Transcript
from goodspeed.verification import Judgement, judge_coupled

VOCAB = 6
EOS = 5
PROMPT = [1, 2, 3]


def target(tokens: Sequence[int]) -> int:
    """The token that follows, as the coupled rule draws it: a function of what stands before. One in 24 ends."""
    digest = hashlib.sha256(bytes(tokens)).digest()
    return EOS if digest[0] % 24 == 0 else digest[1] % EOS


def plain_text(prompt: Sequence[int], max_new_tokens: int, max_length: int) -> tuple[list[int], Finish]:
    """What plain decoding writes, and why it ends."""
    tokens = list(prompt)
    while True:
        tokens.append(target(tokens))
        if tokens[-1] == EOS:
            return tokens, "stop"
        if len(tokens) == max_length or len(tokens) - len(prompt) == max_new_tokens:
            return tokens, "length"


def judge(tokens: Sequence[int], drafted: Sequence[int]) -> Judgement:
    ahead = [*tokens, *drafted]
    drawn = [target(ahead[: len(tokens) + j]) for j in range(len(drafted) + 1)]
    return judge_coupled(drafted, drawn)


class Link(RuleBasedStateMachine):
    """One stream between an agent and a server, over a link that loses, repeats and reorders."""

    @initialize(first=st.integers(0, 4), max_new_tokens=st.integers(1, 20), max_length=st.integers(4, 30))
    def start(self, first: int, max_new_tokens: int, max_length: int) -> None:
        prompt = [first, *PROMPT[1:]]
        self.max_new_tokens, self.max_length = max_new_tokens, max_length
        self.plain, self.plain_finish = plain_text(prompt, max_new_tokens, max_length)
        self.agent = Transcript(prompt)
        self.open()

    def open(self) -> None:
        """Start, or go on from the agent's own copy: on this server or another, over a new link."""
        message = Open(1, self.agent.tokens, self.agent.prompt_tokens, SamplingParams(), self.max_new_tokens, 8)
        self.server = ServedStream.opened(
            message, vocab_size=VOCAB, max_length=self.max_length, eos_tokens=frozenset({EOS})
        )
        self.up: list[Draft] = []
        self.down: list[Verdict] = []
        self.drafts: dict[int, list[int]] = {}

    @precondition(lambda self: self.agent.finish is None)
    @rule()
    def reconnect(self) -> None:
        self.open()

    @rule(size=st.integers(0, 8), right=st.integers(0, 8))
    def draft(self, size: int, right: int) -> None:
        """Draft some tokens, the first few of them right; one that was sent for this base already is sent again."""
        base = self.agent.length
        drafted: list[int] = []
        for j in range(size):
            token = target([*self.agent.tokens, *drafted])
            drafted.append(token if j < right else (token + 1) % VOCAB)
        self.drafts.setdefault(base, drafted)
        self.up.append(Draft(1, base, self.drafts[base]))

    def verify(self, drafted: Sequence[int]) -> None:
        before = self.server.length
        commit = self.server.commit(drafted, judge(self.server.tokens, drafted))
        assert (commit.base, commit.size) == (before, self.server.length - before)
        assert self.server.cached == self.server.length - 1
        assert self.server.prefilled
        self.down.append(Verdict(1, commit.base, commit.accepted, list(commit.appended), 4, finish=commit.finish))

    @precondition(lambda self: self.up)
    @rule(data=st.data(), again=st.booleans())
    def server_hears(self, data: st.DataObject, again: bool) -> None:
        index = data.draw(st.integers(0, len(self.up) - 1))
        self.hear(self.up[index] if again else self.up.pop(index))

    def hear(self, draft: Draft) -> None:
        if self.server.finish:
            return
        missing = self.server.missing(draft.base)
        if missing:
            self.down.append(Verdict(1, draft.base, 0, missing, 4))
        else:
            self.verify(draft.tokens)

    @precondition(lambda self: not self.server.finish)
    @rule()
    def server_decodes_by_itself(self) -> None:
        """A budget of 0, or a deadline that passed."""
        self.verify([])

    @precondition(lambda self: self.down)
    @rule(data=st.data(), again=st.booleans())
    def agent_hears(self, data: st.DataObject, again: bool) -> None:
        index = data.draw(st.integers(0, len(self.down) - 1))
        verdict = self.down[index] if again else self.down.pop(index)
        before = list(self.agent.tokens)
        if verdict.base > self.agent.length:
            with pytest.raises(ProtocolError):
                self.agent.apply(verdict, self.drafts.get(self.agent.length, []))
            assert self.agent.tokens == before
        else:
            new = self.agent.apply(verdict, self.drafts.get(self.agent.length, []))
            assert self.agent.tokens == before + new

    @precondition(lambda self: not self.server.finish)
    @rule()
    def catch_up(self) -> None:
        """Whatever was lost before, one draft and its answer bring the agent up to date."""
        base = self.agent.length
        self.hear(Draft(1, base, self.drafts.setdefault(base, [])))
        verdict = self.down.pop()
        assert verdict.base == base
        self.agent.apply(verdict, self.drafts[base])
        assert self.agent.length == self.server.length

    @precondition(lambda self: self.up)
    @rule(data=st.data())
    def lose_a_draft(self, data: st.DataObject) -> None:
        self.up.pop(data.draw(st.integers(0, len(self.up) - 1)))

    @precondition(lambda self: self.down)
    @rule(data=st.data())
    def lose_a_verdict(self, data: st.DataObject) -> None:
        self.down.pop(data.draw(st.integers(0, len(self.down) - 1)))

    @invariant()
    def everybody_holds_a_prefix_of_the_plain_text(self) -> None:
        if not hasattr(self, "server"):
            return
        assert self.server.tokens == self.plain[: self.server.length]
        assert self.agent.tokens == self.server.tokens[: self.agent.length]
        assert self.agent.generated == self.agent.tokens[self.agent.prompt_tokens :]
        assert self.server.draft_limit <= max(0, self.server.room - 1)

    @invariant()
    def the_end_is_the_plain_texts(self) -> None:
        if not hasattr(self, "server"):
            return
        if self.server.finish:
            assert (self.server.tokens, self.server.finish) == (self.plain, self.plain_finish)
        else:
            assert self.server.room > 0
            assert self.server.length < len(self.plain)
        if self.agent.finish:
            assert (self.agent.tokens, self.agent.finish) == (self.plain, self.plain_finish)


TestLink = Link.TestCase
TestLink.settings = settings(max_examples=50, stateful_step_count=40)

SEARCH = settings(max_examples=100, stateful_step_count=40, phases=[Phase.generate], print_blob=False)


def test_a_server_that_ignores_the_base_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServedStream, "missing", lambda self, base: [])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Link, settings=SEARCH)


def test_an_agent_that_ignores_the_base_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(self: Transcript, verdict: Verdict, drafted: Sequence[int]) -> list[int]:
        if verdict.base > self.length:
            raise ProtocolError("a gap")
        new = [*drafted[: verdict.accepted], *verdict.tokens]
        self.tokens += new
        self.finish = verdict.finish or self.finish
        return new

    monkeypatch.setattr(Transcript, "apply", apply)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Link, settings=SEARCH)


def served(
    tokens: Sequence[int] = (1, 2, 3), *, max_new_tokens: int = 10, max_length: int = 100, ignore_eos: bool = False
) -> ServedStream:
    message = Open(1, list(tokens), 3, SamplingParams(), max_new_tokens, 8, ignore_eos)
    return ServedStream.opened(message, vocab_size=VOCAB, max_length=max_length, eos_tokens=(EOS,))


def test_eos_inside_the_accepted_tokens_ends_the_stream_there() -> None:
    commit = served().commit([1, EOS, 2, 3], Judgement(4, 4))
    assert (commit.accepted, commit.appended, commit.finish, commit.size) == (2, (), "stop", 2)


def test_eos_as_the_bonus_token() -> None:
    commit = served().commit([1, 2], Judgement(2, EOS))
    assert (commit.accepted, commit.appended, commit.finish) == (2, (EOS,), "stop")


def test_eos_is_text_to_whom_ignores_it() -> None:
    commit = served(ignore_eos=True).commit([1, EOS], Judgement(2, 4))
    assert (commit.accepted, commit.appended, commit.finish) == (2, (4,), None)


@pytest.mark.parametrize("limits", [{"max_new_tokens": 3}, {"max_length": 6}])
@pytest.mark.parametrize(
    ("drafted", "token", "accepted", "appended", "finish"),
    [
        ([1, 2], 4, 2, (4,), "length"),
        ([1, 2, 3, 4], 1, 3, (), "length"),
        ([1, 2], EOS, 2, (EOS,), "stop"),
        ([1, 2, EOS], 4, 3, (), "stop"),
        ([1, 2, 3, EOS], 4, 3, (), "length"),
        ([1], 4, 1, (4,), None),
    ],
)
def test_the_end_by_length(
    limits: dict[str, int],
    drafted: list[int],
    token: int,
    accepted: int,
    appended: tuple[int, ...],
    finish: Finish | None,
) -> None:
    stream = served(**limits)  # type: ignore[arg-type]
    commit = stream.commit(drafted, Judgement(len(drafted), token))
    assert (commit.accepted, commit.appended, commit.finish) == (accepted, appended, finish)
    assert stream.tokens == [1, 2, 3, *drafted[:accepted], *appended]


@given(st.integers(1, 12), st.integers(4, 16), st.integers(0, 8))
def test_a_draft_within_the_limit_never_overruns(max_new_tokens: int, max_length: int, extra: int) -> None:
    """Neither the text, nor the slab: the pass writes up to the draft's last token."""
    stream = served(max_new_tokens=max_new_tokens, max_length=max_length, ignore_eos=True)
    while stream.finish is None:
        drafted = [1] * max(0, stream.draft_limit - extra)
        assert stream.length + len(drafted) <= max_length
        size = stream.commit(drafted, Judgement(len(drafted), 2)).size
        assert size == len(drafted) + 1
    assert stream.generated == min(max_new_tokens, max_length - 3)


def opened(tokens: Sequence[int], prompt_tokens: int, **limits: int) -> ServedStream:
    message = Open(1, list(tokens), prompt_tokens, SamplingParams(), limits.get("max_new_tokens", 10), 8)
    return ServedStream.opened(message, vocab_size=VOCAB, max_length=limits.get("max_length", 20), eos_tokens=())


@pytest.mark.parametrize(
    ("tokens", "prompt_tokens", "limits", "code", "says"),
    [
        ([], 0, {}, "empty_prompt", "send at least one token"),
        ([1], 0, {}, "empty_prompt", "send at least one token"),
        ([1], 2, {}, "invalid_request", "a prompt of 2 tokens was announced, and 1 tokens came"),
        ([1] * 20, 20, {}, "prompt_too_long", "shorten it to 19 or less"),
        ([1, VOCAB], 2, {}, "token_out_of_range", f"token id {VOCAB} is out of range"),
        ([1] * 13, 3, {}, "invalid_request", "nothing is left to do"),
    ],
)
def test_an_open_out_of_range_is_refused_by_name(
    tokens: list[int], prompt_tokens: int, limits: dict[str, int], code: str, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        opened(tokens, prompt_tokens, **limits)
    assert caught.value.code == code


def test_sampling_parameters_are_checked_at_the_door() -> None:
    message = Open(1, [1], 1, SamplingParams(temperature=-1.0), 10, 8)
    with pytest.raises(InvalidRequest, match="temperature is -1"):
        ServedStream.opened(message, vocab_size=VOCAB, max_length=20, eos_tokens=())


def test_a_draft_upon_what_was_never_committed_breaks_the_protocol() -> None:
    stream = served((1, 2, 3, 4))
    assert stream.missing(4) == []
    assert stream.missing(3) == [4]
    for base in (5, 2, 0):
        with pytest.raises(ProtocolError, match=f"upon {base} tokens"):
            stream.missing(base)


@pytest.mark.parametrize(
    ("verdict", "drafted"),
    [
        (Verdict(1, 6, 0, [4], 0), []),
        (Verdict(1, 5, 3, [4], 0), [1, 2]),
        (Verdict(1, 3, 0, [4, 0], 0), []),
        (Verdict(1, 3, 1, [0], 0), [9]),
        (Verdict(1, 3, 3, [4], 0), [4, 4, 4]),
    ],
    ids=["a gap", "accepts the undrafted", "contradicts", "contradicts behind", "accepts what is unknown here"],
)
def test_a_verdict_that_cannot_be_is_refused_and_changes_nothing(verdict: Verdict, drafted: list[int]) -> None:
    transcript = Transcript([1, 2, 3])
    transcript.apply(Verdict(1, 3, 0, [4, 4], 0), [])
    with pytest.raises(ProtocolError):
        transcript.apply(verdict, drafted)
    assert transcript.tokens == [1, 2, 3, 4, 4]
    assert transcript.finish is None


def test_a_repetition_brings_only_what_is_new() -> None:
    transcript = Transcript([1, 2, 3])
    assert transcript.apply(Verdict(1, 3, 2, [0], 0), [4, 4, 1]) == [4, 4, 0]
    assert transcript.apply(Verdict(1, 3, 2, [0], 0), []) == []
    assert transcript.apply(Verdict(1, 4, 0, [4, 0, 2], 0, finish="length"), []) == [2]
    assert transcript.generated == [4, 4, 0, 2]
    assert transcript.finish == "length"


def test_prefilled_up_to_the_last_token() -> None:
    stream = served((1, 2, 3))
    assert not stream.prefilled
    stream.cached = 2
    assert stream.prefilled

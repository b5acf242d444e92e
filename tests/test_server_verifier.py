"""What a round of verification asks of the device: nothing between the forward and the draws, and one copy back."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from goodspeed.engine import Engine, Segment
from goodspeed.sampling import SamplingParams, warping
from goodspeed.sampling.warping import RowParams, sample
from goodspeed_server.drawing import UNSOUND, Drawing
from goodspeed_server.verifier import Chunk, Pass, Turn, Verifier
from tests.reading import Waits
from tests.test_engine_graphs import Recorder
from tests.tiny_models import CONTEXT, VOCAB, tiny_llama

ROWS = 4
GREEDY = SamplingParams()
FULL = SamplingParams(temperature=0.8, seed=5)
CUT = SamplingParams(temperature=0.8, top_p=0.9, seed=6)
EVERY_KIND = [
    pytest.param([GREEDY] * ROWS, id="greedy"),
    pytest.param([FULL] * ROWS, id="full"),
    pytest.param([CUT] * ROWS, id="truncated"),
    pytest.param([GREEDY, FULL, CUT, FULL], id="mixed"),
]


class MarkedEngine(Engine):
    """Notes where a forward ends."""

    waits: Waits

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        logits = super().forward(segments)
        self.waits.noted.append("forward")
        return logits


def turns_of(params: Sequence[SamplingParams]) -> list[Turn]:
    rng = random.Random(0)
    drafts = [[rng.randrange(VOCAB) for _ in range(row + 1)] for row in range(len(params))]
    return [Turn(row, 1, 3, drafted, params[row]) for row, drafted in enumerate(drafts)]


@pytest.mark.parametrize("recorder", [pytest.param(Recorder(), id="replayed"), pytest.param(None, id="eager")])
@pytest.mark.parametrize("params", EVERY_KIND)
def test_a_sound_round_reads_the_device_once_and_brings_nothing_to_it_behind_the_forward(
    params: list[SamplingParams], recorder: Recorder | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warping, "_on_cpu", lambda _logits: False)
    engine = MarkedEngine(
        tiny_llama(), rows=ROWS, max_length=CONTEXT, layout="padded", device="cpu", dtype=torch.float32,
        recorder=recorder, lean=False,
    )  # fmt: skip
    work, verifier = Pass(turns_of(params), []), Verifier(engine, "coupled")
    for _ in range(3):  # the second one records what the third replays
        engine.waits = Waits()
        with engine.waits as waits:
            outcome = verifier.run(work)
    assert len(outcome.judgements) == ROWS
    at = waits.noted.index("forward")
    assert waits.noted[at:] == ["forward", "tolist"]
    assert set(waits.noted[:at]) == {"lift_fresh"}


@pytest.mark.parametrize("on_cpu", [True, False])
def test_what_is_read_at_once_are_the_draws_and_where_there_are_none(
    on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat logits over a large vocabulary: a nucleus of which the prefilter holds a part is drawn whole."""
    params = [GREEDY, FULL, CUT, SamplingParams(temperature=1.0, top_p=0.9, seed=9), CUT]
    turns = turns_of(params)
    spreads = torch.tensor([3.0, 3.0, 3.0, 0.1, 3.0]).repeat_interleave(torch.tensor([turn.size for turn in turns]))
    logits = torch.randn(len(spreads), 1000, generator=torch.Generator().manual_seed(0)) * spreads[:, None]
    expected = []
    for turn, own in zip(turns, torch.split(logits, [turn.size for turn in turns]), strict=True):
        alone = Drawing([turn], torch.device("cpu"))
        keys = None if turn.params.greedy else alone._keys
        rows = RowParams.of([turn.params] * turn.size)
        expected += own.argmax(-1).tolist() if keys is None else sample(own, rows, keys).tolist()
    finite = torch.ones(len(logits), dtype=torch.bool)
    finite[3] = False
    expected[3] = UNSOUND
    monkeypatch.setattr(warping, "_on_cpu", lambda _logits: on_cpu)
    assert Drawing(turns, torch.device("cpu")).tokens(logits, finite) == expected


@pytest.mark.parametrize("rule", ["coupled", "ratio"])
def test_turns_without_numbers_are_set_apart_and_the_others_judged_as_without_them(rule: str) -> None:
    """The text that is no number stands between two that are."""

    class Sick(Engine):
        sick: int | None = None

        def _run(self, segments: Sequence[Segment]) -> Tensor:
            parts = list(torch.split(super()._run(segments), [segment.logits for segment in segments]))
            if self.sick is not None:
                parts[self.sick][-1, 5] = torch.inf
            return torch.cat(parts)

    engine = Sick(tiny_llama(), rows=ROWS, max_length=CONTEXT, layout="packed", device="cpu", dtype=torch.float32)
    verifier = Verifier(engine, rule, keep_logits=True)
    work = Pass([Turn(row, 1, 3, [], FULL) for row in range(ROWS)], [])
    whole = verifier.run(work)
    engine.sick = 1
    outcome = verifier.run(work)
    kept = [0, 2, 3]
    assert list(outcome.turns) == [work.turns[row] for row in kept]
    assert list(outcome.unsound) == [work.turns[1]]
    assert len(outcome.judgements) == len(kept)
    if rule == "coupled":  # the other's noise is another each time
        assert list(outcome.judgements) == [whole.judgements[row] for row in kept]
    assert outcome.logits is not None
    assert whole.logits is not None
    assert torch.equal(outcome.logits, whole.logits[kept])


@pytest.mark.parametrize("rule", ["coupled", "ratio"])
def test_a_pass_of_prompts_alone_judges_nothing(rule: str) -> None:
    engine = Engine(tiny_llama(), rows=1, max_length=CONTEXT, layout="packed", device="cpu", dtype=torch.float32)
    outcome = Verifier(engine, rule).run(Pass([], [Chunk(0, 0, [1, 2])]))
    assert (list(outcome.turns), list(outcome.judgements), list(outcome.unsound)) == ([], [], [])
    assert outcome.forward_s >= 0

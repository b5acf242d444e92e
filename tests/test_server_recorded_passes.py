"""A pass in which something is recorded takes long once: nothing that is planned by is learned from it."""

from __future__ import annotations

import pytest
import torch

from goodspeed.engine import Engine
from goodspeed.sampling import SamplingParams
from goodspeed.timing import EngineMeter, PassSample
from goodspeed_server.fitting import Fitting
from goodspeed_server.observer import RoundRecord
from goodspeed_server.server import VerificationServer
from goodspeed_server.verifier import Pass, Turn, Verifier
from tests.serving import linked, tiny_settings, tiny_tokenizer
from tests.test_engine_graphs import Recorder
from tests.test_server import PROMPT
from tests.tiny_models import CONTEXT, tiny_llama


@pytest.mark.parametrize("recorder", [Recorder(), Recorder(replay_s=9.0), Recorder(fails=True)])
def test_the_pass_that_recorded_something_is_named(recorder: Recorder) -> None:
    """Whether it could be, and whether it was worth it."""
    engine = Engine(
        tiny_llama(), rows=2, max_length=CONTEXT, layout="padded", device="cpu", dtype=torch.float32, recorder=recorder
    )
    fitting = Fitting(Verifier(engine, "coupled"), engine)
    work = Pass([Turn(row, 1, 3, [], SamplingParams()) for row in range(2)], [])
    assert [fitting.run(work).recorded for _ in range(4)] == [False, True, False, False]


async def test_the_meter_does_not_see_it(monkeypatch: pytest.MonkeyPatch, records: list[RoundRecord]) -> None:
    seen: list[PassSample] = []
    observe = EngineMeter.observe

    def noted(self: EngineMeter, sample: PassSample) -> None:
        seen.append(sample)
        observe(self, sample)

    monkeypatch.setattr(EngineMeter, "observe", noted)
    monkeypatch.setattr("goodspeed.engine.engine.recorder_on", lambda _device: Recorder())
    # An engine that has been warmed up has recorded this already.
    monkeypatch.setattr("goodspeed_server.target.measure_passes", lambda _engine: [PassSample(1, 1, 0.01)])
    server = VerificationServer(tiny_settings(layout="padded"), tiny_llama(), tiny_tokenizer())
    async with server.listen() as address, linked(address) as peer:
        await peer.generate(0, PROMPT, max_new_tokens=8, max_draft=0)
    recorded = [record.recorded for record in records]
    assert any(recorded)
    assert len(seen) == recorded.count(False)

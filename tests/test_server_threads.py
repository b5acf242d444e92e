"""How many threads a server takes for its passes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from goodspeed_server import threads
from goodspeed_server.threads import use_quickest_threads
from tests.tiny_models import tiny_llama


@pytest.fixture
def two_threads() -> Iterator[None]:
    """What torch takes by itself, on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], cores: int = 2) -> list[int]:
    """Passes that take so long; which numbers of threads they ran with."""
    ran: list[int] = []

    def timed(step: Callable[[int], object], counts: Sequence[int]) -> dict[int, list[float]]:
        for count in counts:
            step(count)
            ran.append(torch.get_num_threads())
        return {count: [seconds[count]] for count in counts}

    monkeypatch.setattr(threads, "timed", timed)
    monkeypatch.setattr(threads, "contenders", lambda step, counts: list(counts))
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    return ran


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("seconds", "chosen"), [({1: 0.01, 2: 0.3}, 1), ({1: 0.3, 2: 0.2}, 2)])
def test_the_quickest_number_is_kept_and_told(
    seconds: dict[int, float], chosen: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ran = pretend(monkeypatch, seconds)
    with caplog.at_level(logging.INFO):
        use_quickest_threads(tiny_llama())
    assert ran == [1, 2]
    assert torch.get_num_threads() == chosen
    assert f"passes run with {chosen} of 2 threads: one takes" in caplog.text


@pytest.mark.usefixtures("two_threads")
def test_no_more_are_tried_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = pretend(monkeypatch, {}, cores=1)
    use_quickest_threads(tiny_llama())
    assert not ran


@pytest.mark.usefixtures("two_threads")
def test_a_model_of_few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = pretend(monkeypatch, {1: 0.1, 2: 0.1})
    use_quickest_threads(tiny_llama(max_position_embeddings=3))
    assert ran == [1, 2]

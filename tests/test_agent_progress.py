import io

from rich.console import Console

from goodspeed_agent.progress import ProgressDisplay
from goodspeed_agent.report import Completion, Speculation


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def completion(drafted: int = 0, *accepted: int) -> Completion:
    speculation = Speculation(drafted)
    for count in accepted:
        speculation.verified(count)
    return Completion("", [], "length", 1, speculation)


def test_plain_lines() -> None:
    written, clock = io.StringIO(), Clock()
    with ProgressDisplay(3, Console(file=written, width=40), bar=False, clock=clock) as display:
        display.tokens(10)
        clock.now_s += 2.0
        display.tokens(20)
        display.finished(completion(20, 2, 2, 2, 2, 2))
        display.finished(None)
        clock.now_s += 1.0
        display.finished(completion())
    assert written.getvalue().splitlines() == [
        "1/3 prompts, 30 tokens, 15.0 tokens/s, 50% of drafts accepted (3.00 tokens per verdict)",
        "2/3 prompts, 30 tokens, 15.0 tokens/s, 50% of drafts accepted (3.00 tokens per verdict), 1 failed",
        "3/3 prompts, 30 tokens, 10.0 tokens/s, 50% of drafts accepted (3.00 tokens per verdict), 1 failed",
    ]


def test_a_bar_on_a_terminal() -> None:
    written, clock = io.StringIO(), Clock()
    console = Console(file=written, width=80, force_terminal=True)
    with ProgressDisplay(2, console, bar=True, clock=clock) as display:
        display.tokens(10)
        clock.now_s += 2.0
        display.finished(completion(4, 1, 0))
    assert "1/2" in written.getvalue()
    assert "10 tokens, 5.0/s, 25% accepted" in written.getvalue()


def test_lines_say_who_waits_for_a_row() -> None:
    written, clock = io.StringIO(), Clock()
    with ProgressDisplay(4, Console(file=written, width=40), bar=False, clock=clock) as display:
        display.queued(1, 7)
        display.queued(2, 8)
        display.queued(1, 6)
        display.queued(0, None)
        display.finished(completion())
        display.queued(1, None)
        display.queued(2, 1)
        display.finished(None)
        display.queued(2, None)
        display.finished(completion())
    assert [line.replace("0 tokens, 0.0 tokens/s, ", "") for line in written.getvalue().splitlines()] == [
        "0/4 prompts, 1 waiting for a row (place 7)",
        "1/4 prompts, 2 waiting for a row (place 6)",
        "2/4 prompts, 1 waiting for a row (place 1), 1 failed",
        "3/4 prompts, 1 failed",
    ]


def test_a_bar_says_who_waits_for_a_row() -> None:
    written = io.StringIO()
    with ProgressDisplay(2, Console(file=written, width=90, force_terminal=True), bar=True, clock=Clock()) as display:
        display.queued(0, 3)
        display.queued(1, 4)
    assert "2 waiting for a row (place 3)" in written.getvalue()

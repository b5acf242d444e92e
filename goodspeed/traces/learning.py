"""What a trace shows: who asked for what and when, how fast agents, links and passes were, which guesses were right.

Where target and draft share their noise, whether a guess is right is settled by the tokens before it, which are the
same under every scheduler. So a position that was drafted once is known for good: a replay finds the misses where they
were. Nothing is known of positions that nobody drafted: those behind a draft that stood whole, and those that the
server wrote by itself. There chance decides, by the rate of the positions nearby.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from goodspeed.estimation import PRIOR_ALPHA
from goodspeed.messages import MAX_DRAFT_TOKENS
from goodspeed.simulation import Engine, Span
from goodspeed.timing import Pace, PassCost, PassSample
from goodspeed.traces.events import Ended, Joined, Known, Opened, Passed, Verdict, Weighed
from goodspeed.traces.reading import Trace, printable

__all__ = ["Recorded", "RecordedAgent", "RecordedText", "hits_of", "learn", "longest_of", "rates"]

_UNKNOWN, _MISS, _HIT = -1, 0, 1
_NEAR = 32
"""Tokens on either side that a position's rate is taken from."""
_WEIGHT = 8.0
"""How many observations a stream's rate counts for beside those nearby, and its agent's beside its own."""
_LEAST_DRAFT_MS = 1e-3

Floats = NDArray[np.float64]


@dataclass(slots=True)
class RecordedText:
    """One stream, as it went."""

    opened: Opened
    ended_at: float
    """Or when the trace ended."""
    reweighted: bool = False
    """Whether it weighed what an operator had said, when it was opened."""
    complete: bool = False
    first_at: float = math.inf
    written: int = 0
    """Tokens."""
    commits: list[tuple[float, int]] = field(default_factory=list)
    """When, and how many tokens."""
    lengths: dict[int, int] = field(default_factory=dict)
    """As those of its agent, by the position that a draft began at."""
    facts: list[tuple[int, int, bool]] = field(default_factory=list)
    """From which position on how many guesses were right, and whether the next was wrong."""

    @property
    def asked_at(self) -> float:
        """When it was asked for, at the server."""
        return self.opened.at - self.opened.waited_s

    @property
    def new_tokens(self) -> int:
        """How long it is: as long as it came to be, or as was wanted where the trace ended before it."""
        return max(1, self.written if self.complete else max(self.opened.wanted, self.written))

    def known(self) -> NDArray[np.int8]:
        """What is known of each position, [new_tokens]: 1 for a guess that was right, 0 for a wrong one, else -1."""
        seen = np.full(self.new_tokens, _UNKNOWN, np.int8)
        for position, right, missed in self.facts:
            seen[position : position + right] = _HIT
            if missed:
                seen[position + right : position + right + 1] = _MISS
        return seen


@dataclass(slots=True)
class RecordedAgent:
    """One agent by name, over all its links."""

    name: str
    drafter: str
    texts: list[RecordedText] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Of its drafts: as far as it had something to say, and `MAX_DRAFT_TOKENS` where that was all it was granted."""
    drafted: int = 0
    draft_ms: float = 0.0
    ways_ms: list[float] = field(default_factory=list)

    @property
    def draft_s(self) -> float:
        """Seconds a drafted token, on average."""
        return max(self.draft_ms / self.drafted, _LEAST_DRAFT_MS) / 1e3 if self.drafted else Pace().draft_s

    @property
    def ways_s(self) -> tuple[float, ...]:
        """Both ways through the network, in order."""
        return tuple(sorted(ms / 1e3 for ms in self.ways_ms)) or (Pace().turnaround_s,)

    @property
    def rate(self) -> float:
        """The share of guesses that were right, among those known of."""
        seen = [text.known() for text in self.texts]
        hits, trials = (sum(int((one >= least).sum()) for one in seen) for least in (_HIT, _MISS))
        return (hits + PRIOR_ALPHA) / (trials + 1)

    @property
    def known_share(self) -> float:
        """Of what was written: of how much it is known whether its guess was right."""
        seen = sum(int((text.known()[: text.written] != _UNKNOWN).sum()) for text in self.texts)
        return seen / max(1, sum(text.written for text in self.texts))

    @property
    def weight(self) -> float:
        """Of its last text."""
        return self.texts[-1].opened.weight if self.texts else 1.0

    @property
    def own_weight(self) -> float:
        """Of its last text whose weight was no operator's word, as far as there is one."""
        own = [text.opened.weight for text in self.texts if not text.reweighted]
        return own[-1] if own else self.weight

    def lanes(self) -> list[list[RecordedText]]:
        """Its texts in as few rows as can be, so that in none of them two were written at once."""
        lanes: list[list[RecordedText]] = []
        for text in sorted(self.texts, key=lambda text: text.opened.at):
            free = next((lane for lane in lanes if lane[-1].ended_at <= text.asked_at), None)
            if free is None:
                lanes.append([text])
            else:
                free.append(text)
        return lanes


@dataclass(frozen=True, slots=True)
class Recorded:
    """All of it."""

    agents: Sequence[RecordedAgent]
    """Those that asked for anything."""
    passes: Sequence[Passed]
    verdicts_at: Sequence[float]
    """When passes with verdicts ended."""
    engine: Engine

    def spans(self, until_s: float) -> list[Span]:
        """When the server had texts of whom."""
        return [
            Span(number, text.opened.at, min(text.ended_at, until_s))
            for number, agent in enumerate(self.agents)
            for text in agent.texts
            if text.opened.at < until_s
        ]


def learn(trace: Trace) -> Recorded:
    """Read the figures out of a trace."""
    agents: dict[str, RecordedAgent] = {}
    of_link: dict[int, RecordedAgent] = {}
    of_stream: dict[int, RecordedAgent] = {}
    texts: dict[int, RecordedText] = {}
    passes: list[Passed] = []
    verdicts_at: list[float] = []
    verdict_seen = False
    reweighted = set[str]()
    for event in trace.events:
        match event:
            case Joined():
                name, drafter = printable(event.name), printable(event.drafter)
                of_link[event.agent] = agents.setdefault(name, RecordedAgent(name, drafter))
            case Opened():
                of_stream[event.stream] = of_link[event.agent]
                again = of_link[event.agent].name in reweighted
                texts[event.stream] = RecordedText(event, trace.duration_s, reweighted=again)
                of_link[event.agent].texts.append(texts[event.stream])
            case Verdict():
                verdict_seen = True
                _take(event, of_stream[event.stream], texts[event.stream])
            case Known():
                texts[event.stream].facts.append((event.position, event.right, event.missed))
            case Passed():
                passes.append(event)
                if verdict_seen:
                    verdicts_at.append(event.at)
                verdict_seen = False
            case Weighed():
                (reweighted.discard if event.weight is None else reweighted.add)(printable(event.agent))
            case Ended():
                texts[event.stream].ended_at, texts[event.stream].complete = event.at, True
            case _:
                pass
    busy = [agent for agent in agents.values() if agent.texts]
    measured = [PassSample(*sample) for sample in trace.header.passes]
    return Recorded(busy, passes, verdicts_at, _engine(measured, passes))


def _take(verdict: Verdict, agent: RecordedAgent, text: RecordedText) -> None:
    if verdict.budget:
        silent = verdict.end == "nothing to say" and verdict.drafted < verdict.budget
        length = verdict.drafted if silent else MAX_DRAFT_TOKENS
        agent.lengths.append(length)
        text.lengths[text.written] = length
    agent.drafted += verdict.sent
    agent.draft_ms += verdict.draft_ms
    if verdict.network_ms is not None:
        agent.ways_ms.append(verdict.network_ms)
    # Where a text ends within its draft, nothing shows what would have become of the rest.
    refused = verdict.accepted < verdict.drafted and verdict.committed > verdict.accepted
    silent = verdict.end == "nothing to say" and verdict.accepted == verdict.drafted < verdict.budget
    text.facts.append((text.written, verdict.accepted, refused or silent))
    text.first_at = min(text.first_at, verdict.at)
    text.commits.append((verdict.at, verdict.committed))
    text.written += verdict.committed


def _engine(measured: Iterable[PassSample], passes: Sequence[Passed]) -> Engine:
    """Whose passes take as long as those that were recorded, all together, and are strewn as they were."""
    cost = PassCost(measured, memory=max(300.0, len(passes)))
    # Of a pass whose agents have all gone meanwhile, nobody knows what was in it.
    timed = [each for each in passes if each.seconds > 0 and each.rows > 0 and each.tokens > 0]
    if not timed:
        return Engine(cost.fixed_s, cost.row_s, cost.token_s)
    for each in timed:
        cost.observe(PassSample(each.rows, each.tokens, each.seconds))
    foretold = np.array([cost.seconds(each.rows, each.tokens) for each in timed])
    took = np.array([each.seconds for each in timed])
    noise = float(np.std(np.log(took / foretold)))
    factor = float(took.sum() / foretold.sum()) / math.exp(noise**2 / 2)
    between_s = float(np.mean([each.other_s for each in timed]))
    return Engine(factor * cost.fixed_s, factor * cost.row_s, factor * cost.token_s, noise, between_s)


def rates(known: NDArray[np.int8], agent_rate: float) -> Floats:
    """How likely a guess is right at each position, by those nearby, the stream's and its agent's, [positions]."""
    seen, right = (known >= _MISS).astype(float), (known == _HIT).astype(float)
    stream_rate = (right.sum() + _WEIGHT * agent_rate) / (seen.sum() + _WEIGHT)
    trials, hits = _near(seen), _near(right)
    return np.asarray((hits + _WEIGHT * stream_rate) / (trials + _WEIGHT))


def _near(values: Floats) -> Floats:
    """Sums over the positions nearby."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    return np.asarray(sums[np.minimum(places + _NEAR + 1, len(values))] - sums[np.maximum(places - _NEAR, 0)])


def longest_of(text: RecordedText, lengths: Sequence[int], random: np.random.Generator) -> NDArray[np.int64] | None:
    """How much an agent has to say at each position: as is known, and where nothing is, as in any other of its drafts.

    Args:
        text: what is written.
        lengths: of its agent's drafts.
        random: draws one of them for each position.

    Returns:
        [new_tokens]; None where it always had as much to say as it was granted.
    """
    if min(lengths, default=MAX_DRAFT_TOKENS) == MAX_DRAFT_TOKENS:
        return None
    longest = random.choice(lengths, text.new_tokens)
    for position, length in text.lengths.items():
        longest[position : position + 1] = length
    return longest


def hits_of(text: RecordedText, agent_rate: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """Which guesses are right: as is known, and where nothing is, as chance has it, [new_tokens]."""
    known = text.known()
    drawn = random.random(len(known)) < rates(known, agent_rate)
    return np.where(known == _UNKNOWN, drawn, known == _HIT)

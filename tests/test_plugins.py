"""Classes of one's own: where they are found, what they are given, and what is said of those that do not fit."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from textwrap import dedent

import pytest

from goodspeed import plugins
from goodspeed.errors import InvalidRequest, RuleFault
from goodspeed.plugins import find
from goodspeed.rules import Coupled, faults_named
from goodspeed.sampling import SamplingParams
from goodspeed.scheduling import SCHEDULER, FixedS, SecondsSched, make_scheduler
from goodspeed.utility import AlphaFair
from goodspeed_agent.drafters import load_drafter
from goodspeed_server.settings import ServerSettings

OWN = """
    from dataclasses import dataclass
    import numpy as np
    from goodspeed.scheduling import Plan

    @dataclass
    class Mine:
        utility: object = None
        beta: float = 0.1

        def plan(self, demand, capacity):
            budgets = np.zeros(len(demand), dtype=np.int64)
            budgets[:1] = min(capacity, demand.limit[0])
            return Plan(budgets)

    class Greedy:
        def plan(self, demand, capacity):
            return Plan(demand.limit)

    class Nothing:
        pass

    class Narrow:
        def plan(self, demand):
            return None

    class Broken:
        def __init__(self):
            raise RuntimeError("no such thing")

    class Asserting:
        def plan(self, demand, capacity):
            assert capacity < 0

    not_a_class = 3

    class Parrot:
        name, max_draft, fingerprint = "parrot", 4, None

        def __init__(self, threads, words=1):
            self.threads, self.words = threads, words

        def open(self, params, *, rule, vocab_size, prompt_tokens=0):
            return self

        def guesses(self, tokens):
            return iter(())
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module `own_classes` in the working directory."""
    (tmp_path / "own_classes.py").write_text(dedent(OWN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield "own_classes"
    sys.modules.pop("own_classes", None)
    sys.modules.pop(str(tmp_path / "own_classes.py"), None)


@pytest.mark.parametrize("place", ["own_classes:Mine", "own_classes.py:Mine", "./own_classes.py:Mine"])
def test_a_class_is_found_by_module_and_by_file_and_gets_the_utility_and_its_options(own: str, place: str) -> None:
    utility = AlphaFair(2.0)
    scheduler = make_scheduler(f"{place}(beta=0.25)", utility)
    assert (type(scheduler).__name__, vars(scheduler)) == ("Mine", {"utility": utility, "beta": 0.25})


def test_where_a_class_failed_is_told(own: str, tmp_path: Path) -> None:
    line = 1 + dedent(OWN).splitlines().index("        assert capacity < 0")
    place = f"{tmp_path / 'own_classes.py'}, line {line}"
    with pytest.raises(InvalidRequest, match=re.escape(f"Asserting raised AssertionError ({place})")):
        make_scheduler("own_classes.py:Asserting", AlphaFair())


def test_where_a_rule_failed_is_told() -> None:
    place = rf"\({re.escape(__file__)}, line \d+\)"
    with pytest.raises(RuleFault, match=f"the rule coupled raised AssertionError {place}"), faults_named(Coupled()):
        raise AssertionError


def test_a_file_is_run_once(own: str) -> None:
    one, other = (make_scheduler("own_classes.py:Mine", AlphaFair()) for _ in range(2))
    assert type(one) is type(other)
    assert one is not other


def test_an_entry_point_has_a_name_of_its_own(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = EntryPoints([EntryPoint("golden", "own_classes:Mine", "goodspeed.schedulers")])
    monkeypatch.setattr(plugins, "entry_points", lambda **wanted: installed.select(**wanted))
    assert type(make_scheduler("golden(beta=0.5)", AlphaFair())).__name__ == "Mine"
    with pytest.raises(InvalidRequest, match=r"did you mean golden\? choose auto, seconds,.* golden, or name a class"):
        ServerSettings(scheduler="goldn")


def test_an_entry_point_may_ask_for_extras_and_has_to_name_a_class(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"rich": "own_classes:Mine [rich, fast]", "bare": "own_classes", "odd": "own_classes:Mine:x"}
    installed = EntryPoints([EntryPoint(name, value, "goodspeed.schedulers") for name, value in values.items()])
    monkeypatch.setattr(plugins, "entry_points", lambda **wanted: installed.select(**wanted))
    assert type(make_scheduler("rich(beta=0.5)", AlphaFair())).__name__ == "Mine"
    for name in ("bare", "odd"):
        sentence = f"the entry point {name} names no scheduler: it is '{values[name]}', and should be like module:Class"
        with pytest.raises(InvalidRequest, match=sentence):
            make_scheduler(name, AlphaFair())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (f"beta={'(' * 1500}1{')' * 1500}", "cannot be read: they are like"),
        (f"beta={'-' * 3000}1", "cannot be read: they are like"),
        (f"beta={'[' * 90}{']' * 90}, x={{[]: 1}}", "cannot be read: they are like"),
        (f"beta={'1' * 3900}e", "cannot be read: they are like"),
        ("beta='\0'", "cannot be read: they are like"),
        ("beta=1, beta=2", "cannot be read: they are like"),
        (f"beta={'1' * 100_000}", "has 100023 characters: at most 4,096 can be"),
        (" " * 100_000, "characters: at most 4,096 can be"),
    ],
)
def test_silly_options_are_refused_in_a_sentence_of_a_bearable_length(own: str, options: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence) as refused:
        make_scheduler(f"own_classes:Mine({options})", AlphaFair())
    assert len(str(refused.value)) < 300


def test_what_lies_beside_a_file_can_be_imported_while_it_is(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("LENGTH = 3\n")
    (tmp_path / "alone.py").write_text(
        "from beside_it import LENGTH\nfrom goodspeed.scheduling import FixedS\n"
        "class Mine(FixedS):\n    def __init__(self):\n        super().__init__(LENGTH)\n"
    )
    before = list(sys.path)
    assert vars(make_scheduler(f"{tmp_path / 'alone.py'}:Mine", AlphaFair()))["_length"] == 3
    assert sys.path == before
    del sys.modules["beside_it"]


def test_a_file_that_lacks_another_is_there_itself(own: str) -> None:
    Path("own_broken.py").write_text("open('own_data.csv')")
    with pytest.raises(InvalidRequest, match=r"own_broken\.py, where the .* fails: FileNotFoundError.*own_data\.csv"):
        make_scheduler("own_broken.py:Mine", AlphaFair())


def test_what_is_built_in_takes_options_too() -> None:
    scheduler = make_scheduler("fixed(length=3)", AlphaFair())
    assert isinstance(scheduler, FixedS)
    assert vars(scheduler)["_length"] == 3
    assert isinstance(make_scheduler("seconds", AlphaFair()), SecondsSched)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("goodspede", r"scheduler 'goodspede' does not exist: did you mean goodspeed\? choose seconds.*module:Class"),
        ("no_such_module:Mine", "there is no no_such_module, where the scheduler should be"),
        ("no_such.py:Mine", r"there is no /.*/no_such\.py, where the scheduler should be"),
        ("own_classes:Mien", "own_classes has no Mien: did you mean Mine?"),
        ("own_classes:not_a_class", "own_classes:not_a_class is a int: name the class of your scheduler"),
        ("own_classes:Nothing", r"own_classes:Nothing is no scheduler: Nothing has no plan; .*interface\.Scheduler"),
        ("own_classes:Narrow", r"Narrow.plan cannot be called as plan\(demand, capacity\): too many positional"),
        ("own_classes:Broken", "the scheduler own_classes:Broken cannot be made: RuntimeError: no such thing"),
        ("own_classes:Mine(gamma=1)", "cannot be made: TypeError: .*gamma"),
        ("own_classes:Mine(3)", r"the options of own_classes:Mine\(3\) cannot be read"),
        ("own_classes:Mine(beta=open('x'))", "cannot be read: they are like"),
        ("own_classes:Mine(beta=1)+f(x=2)", "cannot be read: they are like"),
        ("own_classes:Greedy", "cannot plan for three streams: Greedy gave out 20 tokens"),
        ("seconds(beta=1)", "the scheduler .* cannot be made: TypeError"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(own: str, given: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        make_scheduler(given, AlphaFair())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import no_such_thing", "own_broken, where the scheduler should be, fails: ModuleNotFound.*no_such_thing"),
        ("1 / 0", "own_broken, where the scheduler should be, fails: ZeroDivisionError"),
        ("def", "own_broken, where the scheduler should be, fails: SyntaxError"),
    ],
)  # fmt: skip
def test_a_module_that_fails_is_named_with_its_error(own: str, text: str, sentence: str) -> None:
    Path("own_broken.py").write_text(text)
    for place in ("own_broken:Mine", "own_broken.py:Mine"):
        with pytest.raises(InvalidRequest, match=sentence.replace("own_broken", place.partition(":")[0])):
            make_scheduler(place, AlphaFair())


def test_a_drafter_of_ones_own(own: str) -> None:
    drafter = load_drafter("own_classes:Parrot(words=2)", threads=3)
    assert (drafter.name, vars(drafter)) == ("parrot", {"threads": 3, "words": 2})
    assert list(drafter.open(SamplingParams(), rule="coupled", vocab_size=5).guesses([1])) == []
    with pytest.raises(InvalidRequest, match="own_classes:Mine is no drafter: Mine has no name"):
        load_drafter("own_classes:Mine")


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "./folder", "C:\\models\\draft", "pico-draft-m", "a b (c) d"])
def test_models_names_are_no_places(name: str) -> None:
    assert find(SCHEDULER, name) is None

from goodspeed_agent.report import Completion, Speculation


def speculation(drafted: int, *accepted: int) -> Speculation:
    made = Speculation(drafted)
    for count in accepted:
        made.verified(count)
    return made


def test_the_figures_are_the_fields_own() -> None:
    assert speculation(8 + 4 + 3, 5, 0, 3).to_json() == {
        "mean_acceptance_length": round(1 + 8 / 3, 4),
        "draft_acceptance_rate": round(8 / 15, 4),
        "acceptance_histogram": [1, 0, 0, 1, 0, 1],
        "num_spec_steps": 3,
        "num_accepted_tokens": 8,
        "num_draft_tokens": 15,
        "num_sent_tokens": 0,
        "num_spec_tokens": 0,
    }


def test_without_a_draft_there_is_no_rate() -> None:
    assert Speculation().mean_acceptance_length is None
    assert Speculation().draft_acceptance_rate is None


def test_sums_over_generations() -> None:
    total = Speculation()
    for one in (speculation(4, 2), speculation(6, 3, 0), speculation(1, 0)):
        total.add(one)
    assert total == speculation(11, 2, 3, 0, 0)


def test_what_was_sent_is_summed_too() -> None:
    total = Speculation(num_sent_tokens=4, num_spec_tokens=5)
    total.add(Speculation(num_sent_tokens=9, num_spec_tokens=3))
    assert total == Speculation(num_sent_tokens=13, num_spec_tokens=5)


def test_a_completion_as_one_object() -> None:
    completion = Completion("a b", [1, 2, 3], "length", 7, speculation(2, 2))
    assert completion.to_json() == {
        "text": "a b",
        "tokens": [1, 2, 3],
        "finish_reason": "length",
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
        "speculative": speculation(2, 2).to_json(),
    }

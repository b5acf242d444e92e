from goodspeed_agent.report import Completion, Speculation


def test_the_figures_are_the_fields_own() -> None:
    assert Speculation(3, 8 + 4 + 3, 5 + 0 + 3).to_json() == {
        "num_spec_steps": 3,
        "num_draft_tokens": 15,
        "num_accepted_tokens": 8,
        "mean_acceptance_length": round(1 + 8 / 3, 4),
        "draft_acceptance_rate": round(8 / 15, 4),
    }


def test_without_a_draft_there_is_no_rate() -> None:
    assert Speculation().mean_acceptance_length is None
    assert Speculation().draft_acceptance_rate is None


def test_sums_over_generations() -> None:
    total = Speculation()
    total.add(Speculation(1, 4, 2))
    total.add(Speculation(2, 6, 3))
    assert total == Speculation(3, 10, 5)


def test_a_completion_as_one_object() -> None:
    completion = Completion("a b", [1, 2, 3], "length", 7, Speculation(1, 2, 2))
    assert completion.to_json() == {
        "text": "a b",
        "tokens": [1, 2, 3],
        "finish_reason": "length",
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
        "speculative": {
            "num_spec_steps": 1,
            "num_draft_tokens": 2,
            "num_accepted_tokens": 2,
            "mean_acceptance_length": 3.0,
            "draft_acceptance_rate": 1.0,
        },
    }

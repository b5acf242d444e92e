import re

import pytest

from goodspeed import errors
from goodspeed.errors import GoodSpeedError, InvalidRequest, Overloaded, Refused, VersionMismatch

CLASSES: dict[str, type[GoodSpeedError]] = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, GoodSpeedError)
}


def drawn_tree() -> dict[str, str]:
    """Child to parent, as the module's docstring draws them."""
    assert errors.__doc__ is not None
    path: list[str] = []
    parents = {}
    for line in errors.__doc__.splitlines():
        match = re.match(r"(?P<lead>(?:[│├└─ ]{4})*)(?P<name>[A-Z]\w+)(?: {2,}|$)", line)
        if match:
            depth = len(match["lead"]) // 4
            path = [*path[:depth], match["name"]]
            if depth:
                parents[match["name"]] = path[depth - 1]
    return parents


def test_the_docstring_draws_the_tree_that_is_there() -> None:
    parents = {name: value.__bases__[0].__name__ for name, value in CLASSES.items() if value is not GoodSpeedError}
    assert drawn_tree() == parents


def test_every_class_is_exported_and_documented() -> None:
    assert sorted(CLASSES) == sorted(errors.__all__)
    assert all(value.__doc__ for value in CLASSES.values())


def test_codes_name_one_class_each() -> None:
    codes = [value.code for value in CLASSES.values() if "code" in vars(value)]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


@pytest.mark.parametrize("theirs", [1, 9])
def test_version_mismatch_says_who_has_to_upgrade_to_whoever_reads_it(theirs: int) -> None:
    error = VersionMismatch(ours=4, theirs=theirs)
    assert (error.ours, error.theirs) == (4, theirs)
    assert str(error).endswith(f"upgraded on the older side, which speaks version {min(4, theirs)}")


def test_data_travels_as_attributes() -> None:
    assert InvalidRequest("no", code="empty_prompt").code == "empty_prompt"
    assert InvalidRequest("no").code == "invalid_request"
    assert InvalidRequest.code == "invalid_request"
    overloaded = Overloaded("full", retry_after_s=1.5)
    assert (overloaded.code, overloaded.retry_after_s, str(overloaded)) == ("overloaded", 1.5, "full")
    assert isinstance(overloaded, Refused)

"""What is said of extras is so."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import get_args

from goodspeed.extras import Extra


def test_there_are_the_extras_that_messages_name() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(get_args(Extra)) <= project["optional-dependencies"].keys()

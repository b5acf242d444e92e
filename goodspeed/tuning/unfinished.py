"""What a run keeps in its folder until it is over, so that it can be taken up again and not be mistaken for another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from goodspeed.errors import InvalidRequest

__all__ = ["UnfinishedRun"]


class UnfinishedRun:
    """The checkpoints of a run, and a note of what run it is.

    Args:
        out: the folder that the tuned draft goes to.
        asked: what makes a run that run, and no other; as JSON has it.
    """

    def __init__(self, out: Path, asked: dict[str, Any]) -> None:
        self._out = out
        self._asked = asked
        self.checkpoints = out / "checkpoints"
        self._note = self.checkpoints / "run.json"

    def check(self, *, resume: bool) -> None:
        """See that the folder is new or empty, or with `resume` that it holds this very run.

        Raises:
            InvalidRequest: it is not; nothing in it is touched.
        """
        out = self._out
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidRequest(f"{out} is no folder ({error.strerror}): choose another --out") from None
        if not self._note.exists():
            if resume:
                raise InvalidRequest(f"there is no run to resume in {out}: leave out --resume")
            if any(out.iterdir()):
                raise InvalidRequest(f"{out} is not empty: choose another --out, or --resume what was begun there")
            return
        if not resume:
            raise InvalidRequest(f"a run was begun in {out}: --resume it, or choose another --out")
        begun = json.loads(self._note.read_text(encoding="utf-8"))
        if begun != self._asked:
            raise InvalidRequest(f"the run begun in {out} was another ({begun}): choose another --out")

    def begin(self) -> None:
        """Note down what run it is."""
        self.checkpoints.mkdir()
        self._note.write_text(json.dumps(self._asked), encoding="utf-8")

    def last_checkpoint(self) -> str | None:
        """The last whole one: `trainer_state.json` is written last."""
        found = [path for path in self.checkpoints.glob("checkpoint-*") if (path / TRAINER_STATE_NAME).exists()]
        return max((str(path) for path in found), key=lambda path: int(path.rpartition("-")[2]), default=None)

    def over(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self.checkpoints)

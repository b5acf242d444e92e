"""Where the value of an option was given; a wrong one in the environment is told by its variable, not by its flag."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

__all__ = ["CommandGroup", "variable"]


class CommandGroup(TyperGroup):
    """Commands whose users are told of a wrong value where it stands."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            typer.BadParameter: a value cannot be; it names the variable and what it holds, if it stands there.
        """
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if error.ctx is not None and error.param is not None and error.param_hint is None:
                error.param_hint = variable(error.ctx, error.param)
            raise


def variable(ctx: Any, option: Any) -> str | None:
    """`GOODSPEED_PORT=8765`, if the value of an option comes from the environment, else None.

    Args:
        ctx: typer's, of the command that reads it.
        option: typer's.
    """
    source = ctx.get_parameter_source(option.name)
    if source is None or source.name != "ENVIRONMENT":
        return None
    name = option.envvar or f"{ctx.auto_envvar_prefix}_{option.name.upper()}"
    return f"{name}={option.resolve_envvar_value(ctx)}"

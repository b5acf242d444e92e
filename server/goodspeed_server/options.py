"""The options of commands that link up with a server: `top` and `ctl`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DEFAULT_URL", "Ca", "ClientCert", "ClientKey", "Token"]

DEFAULT_URL = "ws://127.0.0.1:8765"

Token = Annotated[
    str | None,
    typer.Option(
        envvar="GOODSPEED_TOKEN",
        help="A monitor's or an admin's; to change something, an admin's. Better in the environment: others see flags.",
    ),
]
Ca = Annotated[
    Path | None, typer.Option(envvar="GOODSPEED_CA", help="Certificates to trust: the server's own, if self-signed.")
]
ClientCert = Annotated[Path | None, typer.Option(help="For a server that asks for one.")]
ClientKey = Annotated[Path | None, typer.Option(help="Of --client-cert.")]

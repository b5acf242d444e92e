"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from goodspeed_agent.ahead import AheadMode
from goodspeed_agent.silence import LEAST_PATIENCE_S

__all__ = [
    "Ca",
    "ClientCert",
    "ClientKey",
    "ConnectTimeout",
    "Domain",
    "Draft",
    "DraftAhead",
    "IgnoreEos",
    "LogJson",
    "MaxDraft",
    "MaxNewTokens",
    "MinP",
    "Name",
    "OfflineAfter",
    "OfflineFallback",
    "Patience",
    "Seed",
    "Server",
    "Stop",
    "Temperature",
    "Threads",
    "Token",
    "TopK",
    "TopP",
    "Verbose",
]

Server = Annotated[
    list[str],
    typer.Option(
        envvar="GOODSPEED_SERVER",
        help="The server's address, ws://HOST:PORT or wss://HOST:PORT; of several (repeatable, or with commas between) "
        "the first that works, and the next when it does not.",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        envvar="GOODSPEED_DRAFT",
        help="none, suffix (needs no torch), a bundled draft, a folder, a Hugging Face name, a .gguf file, or your own "
        "class, module:Class; by default the bundled draft, or suffix where torch is missing.",
    ),
]
Name = Annotated[
    str | None,
    typer.Option(envvar="GOODSPEED_NAME", help="What the server's operator sees; the host's name by default."),
]
ConnectTimeout = Annotated[
    float,
    typer.Option(min=0.0, max=86_400.0, help="Give up after so many seconds without a link, or without room."),
]
Patience = Annotated[
    float,
    typer.Option(
        "--patience-s",
        min=LEAST_PATIENCE_S,
        max=86_400.0,
        help="Leave a server that is there, owes texts an answer and says nothing to any for so many seconds, and ask "
        "again, there or elsewhere.",
    ),
]
OfflineFallback = Annotated[
    bool,
    typer.Option(
        "--offline-fallback",
        envvar="GOODSPEED_OFFLINE_FALLBACK",
        help="Where no server can be reached, let the draft model answer alone: marked, since nobody verifies it.",
    ),
]
OfflineAfter = Annotated[
    float,
    typer.Option("--offline-after-s", min=0.0, max=86_400.0, help="With that: after so many seconds without a link."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="How many threads a draft model may use; by default 1, and for a .gguf what is measured to be quickest.",
    ),
]
MaxNewTokens = Annotated[int, typer.Option(help="The longest text, in tokens.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that make up this mass; 1 keeps all.")]
TopK = Annotated[int, typer.Option(help="Draw from this many of the likeliest tokens; 0 keeps all.")]
MinP = Annotated[float, typer.Option(help="Draw from tokens at least this fraction as likely as the likeliest.")]
Seed = Annotated[int, typer.Option(help="The same seed, prompt and parameters give the same text.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the text before this string (repeatable).")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on when the model says it is done.")]
DraftAhead = Annotated[
    AheadMode,
    typer.Option(
        help="Draft on beyond what the server asks for; auto does so while enough of it turns out to be of use."
    ),
]
Domain = Annotated[
    str, typer.Option(help="What the text is about, in a word: kept with what the server records for tuning drafts.")
]
MaxDraft = Annotated[int | None, typer.Option(help="The longest draft; by default as drafter and server like it.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", envvar="GOODSPEED_VERBOSE", help="Say what goes on, on standard error.")
]
LogJson = Annotated[
    bool, typer.Option("--log-json", envvar="GOODSPEED_LOG_JSON", help="Say it in JSON lines, for log collectors.")
]
Token = Annotated[
    str | None,
    typer.Option(envvar="GOODSPEED_TOKEN", help="For a server that asks for one; better in the environment."),
]
Ca = Annotated[
    Path | None,
    typer.Option(envvar="GOODSPEED_CA", help="Certificates to trust: the server's own, where that is self-signed."),
]
ClientCert = Annotated[Path | None, typer.Option(help="For a server that asks for a certificate.")]
ClientKey = Annotated[Path | None, typer.Option(help="Of --client-cert.")]

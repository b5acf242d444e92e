"""`python -m bench.recipe STEP`: makes the bundled models."""

import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from bench.recipe.cards import TARGET
from bench.recipe.training import Budget, Progress
from bench.recipe.tuning import TUNED
from bench.recipe.workshop import DRAFTS, Workshop

MODELS = Path(__file__).parents[2] / "goodspeed" / "models"
TARGET_S = 9300.0
DRAFT_CPU_S = {"pico-draft-s": 200.0, "pico-draft-l": 120.0}

Work = Annotated[Path, typer.Option(help="Folder for everything on the way; a step resumes what it finds there.")]
Models = Annotated[Path, typer.Option(help="Folder that has, or receives, a folder a model.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


def _workshop(work: Path, threads: int) -> Workshop:
    work.mkdir(parents=True, exist_ok=True)
    return Workshop(work, threads)


@app.command()
def corpus(work: Work = Path("build/recipe")) -> None:
    """Read the standard library, and split it by file."""
    _workshop(work, 1).make_corpus()


@app.command()
def tokenizer(work: Work = Path("build/recipe")) -> None:
    """Train the tokenizer, and encode the corpus."""
    _workshop(work, 1).make_tokenizer()


@app.command()
def target(
    work: Work = Path("build/recipe"),
    threads: Threads = 2,
    train_s: Annotated[
        float, typer.Option(help="Seconds of training in all (wall clock), earlier runs included.")
    ] = TARGET_S,
    until: Annotated[str | None, typer.Option(help="HH:MM, local time, instead of --train-s.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Model to start from where there is no checkpoint: a name or a folder.")
    ] = None,
) -> None:
    """Train the target on next tokens."""
    workshop = _workshop(work, threads)
    budget = Budget(train_s, clock="wall") if until is None else _until(until, workshop.progress(TARGET))
    workshop.pretrain(TARGET, budget, start=start)


@app.command()
def drafts(
    work: Work = Path("build/recipe"),
    threads: Threads = 2,
    only: Annotated[list[str] | None, typer.Option(help="Draft to train; may be repeated.")] = None,
) -> None:
    """Train the drafts on next tokens."""
    workshop = _workshop(work, threads)
    for name in only or DRAFTS:
        workshop.pretrain(name, Budget(DRAFT_CPU_S[name]))


@app.command()
def export(work: Work = Path("build/recipe"), models: Models = MODELS) -> None:
    """Write what is trained on next tokens to the folder of models."""
    _workshop(work, 1).export(models)


@app.command()
def tune(
    work: Work = Path("build/recipe"),
    threads: Threads = 2,
    models: Models = MODELS,
    only: Annotated[list[str] | None, typer.Option(help="Draft to tune; may be repeated.")] = None,
) -> None:
    """Tune drafts in the folder of models to the target there, by `goodspeed tune`."""
    workshop = _workshop(work, threads)
    for name in only or TUNED:
        workshop.tune(name, models)


@app.command()
def cards(work: Work = Path("build/recipe"), threads: Threads = 2, models: Models = MODELS) -> None:
    """Measure the models, and complete their cards."""
    _workshop(work, threads).measure(models)


@app.command("all")
def everything(work: Work = Path("build/recipe"), threads: Threads = 2) -> None:
    """Run every step in order."""
    workshop = _workshop(work, threads)
    workshop.make_corpus()
    workshop.make_tokenizer()
    workshop.pretrain(TARGET, Budget(TARGET_S, clock="wall"))
    for name in DRAFTS:
        workshop.pretrain(name, Budget(DRAFT_CPU_S[name]))
    workshop.export(MODELS)
    for name in TUNED:
        workshop.tune(name, MODELS)
    workshop.measure(MODELS)


def _until(clock: str, progress: Progress) -> Budget:
    """A budget that is spent when the local clock next shows `clock`."""
    try:
        wanted = datetime.strptime(clock, "%H:%M")
    except ValueError:
        raise typer.BadParameter(f"{clock!r} is not a time like 20:25") from None
    now = datetime.fromtimestamp(time.time())
    then = now.replace(hour=wanted.hour, minute=wanted.minute, second=0, microsecond=0)
    return Budget(progress.train_s + ((then - now) % timedelta(days=1)).total_seconds(), clock="wall")


if __name__ == "__main__":
    app()

"""``bkray train``."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bkray.cli.words import INTERRUPTED, NO_SUCCESS, AsJson, Runs, Words, print_json
from bkray.errors import ConfigError


def train(
    overrides: Words = None,
    out: Annotated[Path | None, typer.Option(help="The trial's folder; resumed if begun.")] = None,
    runs: Runs = Path("runs"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Train on so many Ray Train workers.")
    ] = None,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs of each worker.")] = 0.0,
    settings: Annotated[
        Path | None,
        typer.Option(help="JSON or YAML of a generator under the guides' names; overrides win."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Train one trial: in this process without Ray or a server, or on Ray Train workers.

    The same command again goes on from the last checkpoint; a finished trial is only shown.
    """
    from bkray.overrides import build, parse

    given = parse(overrides or [])
    if settings is not None:
        given = _guided(settings, given)
    config = build(_climbing(given))  # a typo is told before torch is loaded
    from bkray.cluster.crew import Crew
    from bkray.cluster.single import train_alone
    from bkray.sinks.console import ConsoleView
    from bkray.trial import identify

    folder = out or runs / "train" / identify(config)[0]
    view = None if as_json else ConsoleView(1)
    crew = None
    if workers is None and gpus_per_worker:
        raise ConfigError(
            "--gpus-per-worker is for Ray Train: give --workers too, or leave it out"
        )
    if workers is not None:
        crew = Crew(workers=workers, threads=config.threads, gpus=gpus_per_worker)
    ended = train_alone(config, folder, [view] if view else [], crew)
    if view:
        view.close()
    if as_json:
        print_json({"folder": str(folder), **ended})
    else:
        loss = ended["summary"].get("best_val_loss_nats")
        unit = "nats/value" if config.generator.acts else "nats/token"
        best = "no validation" if loss is None else f"best validation loss {loss:.4f} {unit}"
        said = [best, ended["stop_reason"], ended["summary"].get("advice")]
        print(f"{ended['outcome']}: {'; '.join(filter(None, said))}; in {folder}")
    if ended["outcome"] == "interrupted":
        again = ["bkray", "train", *(overrides or []), "--out", str(folder)]
        again += ["--settings", str(settings)] if settings is not None else []
        if crew is not None:
            again += ["--workers", str(crew.workers), "--gpus-per-worker", f"{crew.gpus:g}"]
        print(f"go on with: {shlex.join(again)}", file=sys.stderr)
        return INTERRUPTED
    return 0 if ended["outcome"] == "ok" else NO_SUCCESS


def _guided(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Return what a file under the guides' names asks for, with the overrides laid over it."""
    from bkray.data.of_generator import sequences, standard_splits
    from bkray.guides.generator import Rows, generator_overrides, read_settings
    from bkray.overrides import build

    own = {path: value for path, value in given.items() if path.startswith(("data.", "train."))}
    config = build({**own, "generator.training_sequence_length": 2})
    source = sequences(config.data)
    n_train = len(standard_splits(source)["train"])
    rows = Rows(source.n_frames, source.n_channels, n_train, source.n_classes)
    asked = generator_overrides(read_settings(path), rows, batch_size=config.train.batch_size)
    if not asked.trains:
        raise ConfigError(
            f"{path} asks for samples of a pretrained generator and trains none: set "
            "generator_training_mode to true, or sample it with bkray.nn.vae.VAEGenerator"
        )
    return {**asked.overrides, **given}


def _climbing(given: dict[str, Any]) -> dict[str, Any]:
    """Return the overrides of one trial, which climbs whatever lengths it is given."""
    if given.get("ladder.lengths") is None:
        return given
    if given.get("ladder.mode", "carry") != "carry":
        raise ConfigError(
            f"ladder.mode={given['ladder.mode']} does nothing in one trial, which climbs its "
            "lengths: use ladder.mode=carry, or bkray sweep ladder"
        )
    return {**given, "ladder.mode": "carry"}

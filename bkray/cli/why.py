"""The verbs for a trial that diverged: ``why``, ``replay``."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from bkray.cli.words import NO_SUCCESS, AsJson, print_json

Trial = Annotated[Path, typer.Argument(metavar="TRIAL_DIR")]


def why(folder: Trial, as_json: AsJson = False) -> int:
    """Say why a trial ended: of a divergence what broke first, where, and what to try.

    --json prints outcome, reason and step, the files "record" and
    "diagnosis" of forensics/, "advice", and the path of the "figure".
    """
    from bkray.report.explain import ending, explain, plain

    figure = _figure(folder) if ending(folder)["outcome"] == "diverged" else None
    if as_json:
        print_json({**plain(folder), "figure": figure})
        return 0
    for line in explain(folder):
        print(line)
    if figure is not None:
        print(f"figure: {figure}")
        print(f"again: bkray replay {folder}")
    return 0


def replay(folder: Trial, as_json: AsJson = False) -> int:
    """Repeat the last steps of a diverged trial here, on the CPU: does the same tensor break?

    Exit status 3 where it does not. --json prints "reproduced", what was
    found here and then, and the largest difference of a loss.
    """
    from bkray.replay import replay as repeat

    replayed = repeat(folder)
    now, then = replayed.diagnosis, replayed.recorded
    if as_json:
        print_json(
            {
                "reproduced": replayed.is_reproduced,
                "diagnosis": dataclasses.asdict(now),
                "recorded": None if then is None else dataclasses.asdict(then),
                "largest_loss_difference": now.largest_loss_difference,
                "remarks": replayed.remarks,
            }
        )
    else:
        from bkray.report.explain import found

        print("reproduced" if replayed.is_reproduced else "not reproduced")
        print(f"here: {found(now)}")
        print(f"then: {'not known' if then is None else found(then)}")
        print(now.compared())
        for remark in replayed.remarks:
            print(f"note: {remark}")
    return 0 if replayed.is_reproduced else NO_SUCCESS


def _figure(folder: Path) -> Path | None:
    """Draw the steps before a divergence; ``None`` where there is nothing, or no room, for it."""
    from bkray.train.findings import FOLDER, RECORD

    if not (folder / FOLDER / RECORD).exists():
        return None
    from bkray.report.stability import draw_forensics

    try:
        return draw_forensics(folder / FOLDER)
    except OSError:
        return None

"""The command line: ``bkray --help``. Each verb reads its words, calls one function, prints.

Exit status: 0 done; 2 a mistake of the user; 3 no trial succeeded; 4 a budget was reached first;
130 interrupted.
"""

import sys
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from bkray.cli.cluster import app as cluster
from bkray.cli.eval import evaluate
from bkray.cli.frontier import frontier
from bkray.cli.lengths import lengths
from bkray.cli.look import report, show, ui
from bkray.cli.resume import resume
from bkray.cli.sweep import sweep
from bkray.cli.sync import mlflow_sync
from bkray.cli.train import train
from bkray.cli.why import replay, why
from bkray.cli.words import INTERRUPTED, USER_ERROR
from bkray.errors import BkrayError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command("train", epilog="Example: bkray train mixer=attention train.steps=100")(train)
app.command("sweep", epilog="Example: bkray sweep act --preset smoke train.steps=40")(sweep)
app.command("resume", epilog="Example: bkray resume runs/act/20260101-120000-small")(resume)
app.command("show", epilog="Example: bkray show runs/act/20260101-120000-small")(show)
app.command("report", epilog="Example: bkray report runs/act/20260101-120000-small")(report)
app.command("eval", epilog="Example: bkray eval runs/train/1a2b3c4d5e6f --split test")(evaluate)
app.command("frontier", epilog="Example: bkray frontier runs/train/1a2b3c4d5e6f")(frontier)
app.command(
    "lengths", epilog="Example: bkray lengths FILE --max-length 256 --field text --tokenizer words"
)(lengths)
app.command("mlflow-sync", epilog="Example: bkray mlflow-sync runs/act/20260101-120000-small")(
    mlflow_sync
)
app.command("why", epilog="Example: bkray why runs/train/1a2b3c4d5e6f")(why)
app.command("replay", epilog="Example: bkray replay runs/train/1a2b3c4d5e6f")(replay)
app.add_typer(cluster, name="cluster")
app.command("ui", epilog="Example: bkray ui --port 5001")(ui)


def main() -> None:
    """Run the command line; a mistake of the user is one message and status 2."""
    try:
        sys.path.append("")  # model=package.module:build of the folder one stands in
        sys.exit(app(standalone_mode=False))
    except BkrayError as error:
        _fail(f"error: {error}", USER_ERROR)
    except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
        _fail(f"error: {error.strerror}: {error.filename}", USER_ERROR)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except TyperException as error:  # an unknown verb or option
        # no verb at all has shown the help already
        _fail(f"error: {_words(error)}" if str(error) else "", USER_ERROR)


def _words(error: TyperException) -> str:
    """Return what is wrong with which option, as typer itself would have put it."""
    said: str = getattr(error, "format_message", lambda: str(error))()
    return " ".join(said.split())


def _fail(message: str, status: int) -> NoReturn:
    print(message or "give a verb, such as: bkray sweep act", file=sys.stderr)
    sys.exit(status)

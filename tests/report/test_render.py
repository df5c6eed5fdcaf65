"""The files of a report agree with each other, whatever became of the sweep, and need nobody."""

import json
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from made_sweep import ACT, LOSS, write_act_sweep, write_record, write_trial

from bkray.errors import ConfigError
from bkray.report import tables
from bkray.report.ranking import leaderboard
from bkray.report.render import Report, write_report

HOSTILE = "</script><b>&\"'$x</b>"
"""What a careless page would run, cut short or fill in."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write_report(write_act_sweep(tmp_path_factory.mktemp("report") / "act", 16, n_steps=50))


class _Tables(HTMLParser):
    """The tables of a page by id: of each line the ``data-value`` of a cell, else its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.columns: dict[str, list[str]] = {}
        self.lines: dict[str, list[list[str]]] = {}
        self.tags: list[str] = []
        self._table = ""
        self._in_text = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append(tag)
        if tag == "table":
            self._table = known["id"] or ""
            self.columns[self._table], self.lines[self._table] = [], []
        if tag == "tr":
            self.lines[self._table].append([])
        if tag == "th":
            self.columns[self._table].append(known["data-column"] or "")
        if tag == "td":
            self._in_text = "data-value" not in known
            self.lines[self._table][-1].append(known.get("data-value") or "")

    def handle_endtag(self, tag: str) -> None:
        self._in_text = self._in_text and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._in_text:
            self.lines[self._table][-1][-1] += data

    def of(self, table: str) -> list[dict[str, str]]:
        columns = self.columns[table]
        return [dict(zip(columns, line, strict=True)) for line in self.lines[table][1:]]


def parsed(report: Report) -> _Tables:
    return _Tables(report.html.read_text())


def specs(report: Report) -> dict[str, Any]:
    page = report.html.read_text()
    text = page.partition('id="figures">')[2].partition("</script>")[0]
    return dict(json.loads(text, parse_constant=pytest.fail)["specs"])


def test_leaves_page_csv_parquet_and_pngs(written: Report) -> None:
    folder = written.html.parent
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("figures", "report.html", "sweep.json", "trials", "trials.csv", "trials.parquet")
    }
    assert sorted(written.figures) == sorted((folder / "figures").iterdir())
    assert {path.stem for path in written.figures} == set(specs(written))
    assert all(path.read_bytes()[1:4] == b"PNG" for path in written.figures)


def test_numbers_of_the_page_are_those_of_the_parquet(written: Report) -> None:
    rows = pq.read_table(written.parquet).to_pylist()
    shown = parsed(written).of("leaderboard")
    ranked = leaderboard(rows, tables.objectives(written.html.parent))
    known = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    assert set(known) <= set(shown[0])
    n_numbers = 0
    for cells, row in zip(shown, ranked, strict=True):
        for name in known:
            if row[name] is None:
                assert cells[name] in ("-", "running")
            elif isinstance(row[name], int | float) and not isinstance(row[name], bool):
                assert float(cells[name]) == row[name]  # to the last digit
                n_numbers += 1
            elif name != "outcome":
                assert cells[name] == (str(row[name]) or "-")
    assert n_numbers > 150


def test_csv_holds_the_columns_and_numbers_of_the_parquet(written: Report) -> None:
    table = pq.read_table(written.parquet)
    texts = csv.ConvertOptions(
        column_types=table.schema, strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    assert csv.read_csv(written.csv, convert_options=texts).equals(table)


def test_every_reason_is_listed(written: Report) -> None:
    shown = {line["trial_id"]: line for line in parsed(written).of("reasons")}
    rows = [row for row in pq.read_table(written.parquet).to_pylist() if row["outcome"] != "ok"]
    assert len(rows) == 5
    for row in rows:
        assert shown[row["trial_id"]]["stop_reason"] == (row["stop_reason"] or "-")
    assert {line["outcome"] for line in shown.values()} == {
        *("diverged", "failed", "oom", "pruned", "running")
    }


def test_header_says_what_was_run_where(written: Report) -> None:
    page = written.html.read_text()
    for said in ("full", "0123456789ab with changes", "2026-01-01T12:00", "made_up.txt"):
        assert said in page
    assert "2 cores, 24,105 MiB, Linux" in page
    assert "Points on the Pareto front:" in page


def test_seeds_of_a_configuration_are_shown_with_mean_and_interval(tmp_path: Path) -> None:
    sweep = write_record(tmp_path / "s")
    for number in range(6):
        arm = f"dense-{number // 3 + 1}"
        diverges_at = 7 if number == 5 else None
        write_trial(sweep, number, arm=arm, seed=number % 3, n_steps=50, diverges_at=diverges_at)
    report = write_report(sweep)
    first, second = parsed(report).of("configurations")
    rows = pq.read_table(report.parquet).to_pylist()
    seen = [row["final_val_loss_nats"] for row in rows[:3]]
    assert (first["configuration"], first["n"], first["n_diverged"]) == ("dense-1", "3", "0")
    assert float(first["final_val_loss_nats"]) == pytest.approx(sum(seen) / 3, rel=1e-12)
    low, high = (float(first[f"final_val_loss_nats/{end}"]) for end in ("low", "high"))
    assert min(seen) <= low < high <= max(seen)
    assert (second["n"], second["n_diverged"], second["outcome"]) == ("3", "1", "diverged")
    assert second["final_val_loss_nats"] == "-"
    assert len(parsed(report).of("leaderboard")) == 6


def _empty(sweep: Path) -> None:
    write_record(sweep)


def _one_runs(sweep: Path) -> None:
    write_record(sweep)
    write_trial(sweep, 0, knobs={ACT[0]: 0.5, ACT[1]: 0.1}, outcome="running", n_steps=0)
    write_trial(sweep, 1, knobs={ACT[0]: 0.6, ACT[1]: 0.2}, outcome="running", n_steps=100)


def _all_diverged(sweep: Path) -> None:
    write_record(sweep)
    for number in range(3):
        knobs = {ACT[0]: 0.5 + number / 10, ACT[1]: 0.1}
        write_trial(sweep, number, knobs=knobs, diverges_at=1, n_steps=20)


def _own_model(sweep: Path) -> None:
    swept = ["model.options.layers", "optimizer.lr"]
    write_record(sweep, swept=swept, objectives=[LOSS], arms=[])
    for number in range(3):
        knobs = {swept[0]: number + 1, swept[1]: 10.0**-number}
        write_trial(sweep, number, knobs=knobs, n_steps=50)


@pytest.mark.parametrize(
    ("make", "figures"),
    [
        (_empty, set()),
        (_one_runs, {"validation_loss", "training_loss", "layers_executed", "outcomes"}),
        (_all_diverged, {"outcomes"}),
        (
            _own_model,
            {
                *("heat_map_final_val_loss_nats", "heat_map_avg_layers_executed"),
                *("validation_loss", "training_loss", "layers_executed", "outcomes"),
            },
        ),
    ],
)
def test_any_sweep_gets_a_report_and_only_the_figures_that_it_can_fill(
    tmp_path: Path, make: Callable[[Path], None], figures: set[str]
) -> None:
    make(tmp_path / "s")
    report = write_report(tmp_path / "s")
    assert set(specs(report)) == {path.stem for path in report.figures} == figures


def test_a_report_of_a_sweep_that_went_on_replaces_the_one_before(tmp_path: Path) -> None:
    sweep = write_record(tmp_path / "s")
    write_trial(sweep, 0, arm="dense-1", n_steps=50)
    assert len(parsed(write_report(sweep)).of("leaderboard")) == 1
    write_trial(sweep, 1, arm="dense-2", n_steps=50)
    assert len(parsed(write_report(sweep)).of("leaderboard")) == 2
    assert not list(sweep.rglob("*.tmp"))


def test_what_users_wrote_is_text(tmp_path: Path) -> None:
    sweep = write_record(
        tmp_path / "s",
        name=HOSTILE,
        overview=HOSTILE,
        swept=["model.mixer"],
        overrides={"a": HOSTILE},
    )
    write_trial(sweep, 0, arm=HOSTILE, n_steps=50)
    knobs = {"model.mixer": HOSTILE}
    write_trial(sweep, 1, knobs=knobs, outcome="failed", reason=HOSTILE, n_steps=50)
    report = write_report(sweep)
    page = parsed(report)
    assert "b" not in page.tags
    assert page.tags.count("script") == 3
    first, second = page.of("leaderboard")
    assert (first["arm"], second["param/model.mixer"]) == (HOSTILE, HOSTILE)
    assert page.of("reasons")[0]["stop_reason"] == HOSTILE
    assert HOSTILE in json.dumps(specs(report), ensure_ascii=False).replace('\\"', '"')


def test_a_folder_without_sweep_is_the_error_of_show(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no sweep\.json; give a folder like runs/"):
        write_report(tmp_path)


def test_a_report_needs_neither_torch_nor_ray_nor_a_server(tmp_path: Path) -> None:
    sweep = write_record(tmp_path / "s")
    write_trial(sweep, 0, arm="dense-1", n_steps=50)
    program = (
        "import sys; from pathlib import Path; from bkray.report.render import write_report;"
        f"write_report(Path({str(sweep)!r}));"
        "print([m for m in ('torch', 'ray', 'mlflow', 'optuna', 'numba') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_verb_prints_the_paths_that_it_wrote(
    say_here: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    sweep = write_record(tmp_path / "s")
    write_trial(sweep, 0, arm="dense-1", n_steps=50)
    command = [sys.executable, "-m", "bkray.cli", "report", str(sweep), "--json"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0
    paths = json.loads(said.stdout)
    assert set(paths) == {"html", "csv", "parquet", "figures", "results", "cells"}
    found = [paths["html"], paths["csv"], paths["parquet"], *paths["figures"]]
    assert all(Path(path).is_file() for path in found)
    plain = say_here("report", str(sweep)).stdout
    assert all(Path(path).name in plain for path in found)
    wrong = say_here("report", str(tmp_path))
    shown = say_here("show", str(tmp_path))
    assert (wrong.returncode, wrong.stderr) == (shown.returncode, shown.stderr)
    assert wrong.stderr.count("\n") == 1

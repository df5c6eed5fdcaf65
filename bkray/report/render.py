"""Writes the report of a sweep into its folder: one HTML page, PNGs, a CSV."""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.csv as csv
import pyarrow.parquet as pq

from bkray import atomic
from bkray.report import tables
from bkray.report.cell_rows import cell_rows, write_cells
from bkray.report.configurations import configurations
from bkray.report.findings import findings
from bkray.report.history import read_histories
from bkray.report.ladder import write_results
from bkray.report.ladder_plots import ladder_figures
from bkray.report.mismatch import verdicts
from bkray.report.mismatch_plots import mismatch_figures
from bkray.report.page import page
from bkray.report.plots import figures
from bkray.report.vega import png


@dataclass(frozen=True, slots=True)
class Report:
    """The files of a report, ``trials.parquet`` among them; ``figures`` are PNGs.

    ``results`` is the ``long_context_results.json`` of a length ladder, ``cells`` the
    ``mismatch.parquet`` of trials that were evaluated at other lengths.
    """

    html: Path
    csv: Path
    parquet: Path
    figures: tuple[Path, ...]
    results: Path | None
    cells: Path | None


def write_report(sweep_dir: Path) -> Report:
    """Write ``report.html``, ``trials.csv``, ``figures/*.png`` and ``trials.parquet`` anew, of a
    length ladder also ``long_context_results.json``, and ``mismatch.parquet`` of cells.

    Each appears whole or not at all. All show the rows of that ``trials.parquet``, also while the
    sweep goes on.

    Raises:
        ConfigError: the folder is not that of a sweep.
    """
    parquet = tables.write_trials_parquet(sweep_dir)
    table = pq.read_table(parquet)
    rows, objectives = table.to_pylist(), tables.objectives(sweep_dir)
    known, measured = findings(sweep_dir, rows), cell_rows(sweep_dir)
    found = configurations(known.ranked(rows), objectives)
    histories = read_histories(sweep_dir, rows, objectives)
    drawn = [
        *figures(found, histories, objectives),
        *ladder_figures(known.ladder),
        *mismatch_figures(known.mismatch),
    ]
    report = Report(
        html=sweep_dir / "report.html",
        csv=sweep_dir / "trials.csv",
        parquet=parquet,
        figures=tuple(sweep_dir / "figures" / f"{figure.name}.png" for figure in drawn),
        results=None if known.ladder is None else write_results(sweep_dir, known.ladder),
        cells=write_cells(sweep_dir, measured, verdicts(known.mismatch)) if measured else None,
    )
    (sweep_dir / "figures").mkdir(exist_ok=True)
    for figure, path in zip(drawn, report.figures, strict=True):
        with atomic.replace(path) as temporary:
            temporary.write_bytes(png(figure))
    with atomic.replace(report.csv) as temporary:
        csv.write_csv(table, temporary)
    record = json.loads((sweep_dir / "sweep.json").read_text(encoding="utf-8"))
    atomic.write_text(report.html, page(record, rows, objectives, found, drawn, known))
    return report

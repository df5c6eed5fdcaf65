"""What only some sweeps have beside their table of trials."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bkray.report.comparison import Compared, compared, contestants
from bkray.report.generator import Line, generator_lines
from bkray.report.ladder import Ladder, ladder
from bkray.report.mismatch import Cell, mismatch
from bkray.report.tables import Row


class Findings(NamedTuple):
    """A ladder of lengths, families that were compared, cells of length mismatch, generators by
    their training length."""

    ladder: Ladder | None = None
    compared: Compared | None = None
    mismatch: Sequence[Cell] = ()
    generator: Sequence[Line] = ()

    def ranked(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows that a leaderboard is of: of families, the trials that compare them."""
        between_families = self.compared is not None and self.compared.families
        return contestants(rows) if between_families else rows


NOTHING = Findings()


def findings(sweep_dir: Path, rows: Sequence[Row]) -> Findings:
    """Return what the sweep in the folder has; ``rows`` are those of ``trials.parquet``."""
    return Findings(
        ladder(sweep_dir),
        compared(sweep_dir, rows),
        mismatch(sweep_dir),
        generator_lines(sweep_dir),
    )

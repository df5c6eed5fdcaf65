"""Length mismatch as a section of the page."""

from collections.abc import Iterable, Sequence
from html import escape

from bkray.report import mismatch_words
from bkray.report.cell_rows import FILE
from bkray.report.markup import Column, table
from bkray.report.mismatch import Cell


def section(found: Sequence[Cell], figures: Iterable[str]) -> str:
    """Return table, sentences and figures, these as HTML already; empty without a cell."""
    if not found:
        return ""
    known = mismatch_words.columns(found).items()
    columns = [Column(name=name, values=values) for name, values in known]
    said = "".join(f"<li>{escape(words)}</li>" for words in mismatch_words.sentences(found))
    file = f'<p class="soft">Seed by seed: <a href="{FILE}">{FILE}</a></p>'
    head = f"<h2>{mismatch_words.TITLE}</h2>"
    return "\n".join([head, table("mismatch", columns), f"<ul>{said}</ul>", file, *figures])

"""Sections of the page that only some sweeps have; empty where there is nothing to show."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bkray.report import comparison_words, generator_words, parts, products
from bkray.report.comparison import Compared
from bkray.report.generator import Line
from bkray.report.markup import Column, table
from bkray.report.tables import Row


def combined_section(rows: Sequence[Row]) -> str:
    """Return pairs of features beside the product of their parts."""
    known = products.columns(products.products(rows))
    return _section("Combined speed", known, products.said(rows))


def parts_section(rows: Sequence[Row]) -> str:
    """Return arms held against their references."""
    return _section("Arms against their references", parts.columns(rows), parts.said(rows))


def comparison_section(known: Compared | None) -> str:
    """Return the verdicts of a comparison, and the speeds of its rivals by length."""
    if known is None:
        return ""
    shown_parts = []
    for number, (title, columns) in enumerate(comparison_words.tables(known).items()):
        shown = [Column(name=name, values=values) for name, values in columns.items()]
        shown_parts += [f"<h2>{escape(title)}</h2>", table(f"comparison-{number}", shown)]
    said = "".join(f"<li>{escape(words)}</li>" for words in comparison_words.sentences(known))
    return "\n".join([*shown_parts, f"<ul>{said}</ul>" if said else ""])


def generator_section(lines: Sequence[Line]) -> str:
    """Return what generators come to by their training length."""
    if not lines:
        return ""
    known = generator_words.columns(lines).items()
    shown = table("generator", [Column(name=name, values=values) for name, values in known])
    said = "".join(f"<li>{escape(words)}</li>" for words in generator_words.sentences(lines))
    return f"<h2>{generator_words.TITLE}</h2>\n{shown}\n<ul>{said}</ul>"


def _section(title: str, known: Mapping[str, Sequence[Any]], said: str) -> str:
    if not said:
        return ""
    columns = [Column(name=name, values=values) for name, values in known.items()]
    note = f'<p class="soft">{escape(said)}</p>'
    return f"<h2>{title}</h2>\n{note}\n{table(title.partition(' ')[0].lower(), columns)}"

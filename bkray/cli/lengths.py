"""The verb that measures a corpus before anything is trained on it: ``lengths``."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from bkray.cli.words import AsJson, print_json


def lengths(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    max_length: Annotated[int, typer.Option(help="Tokens that a model would take.")],
    field: Annotated[
        list[str] | None, typer.Option(help="Of records, a.b through lists; may be repeated.")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="bytes, words, or a file with a piece a line.")
    ] = "bytes",
    as_json: AsJson = False,
) -> int:
    """Show how much of a corpus is longer than a model would take, and what to do about it.

    An item is a line of text, or a text in the fields of a record: of .json,
    .jsonl and .parquet the field "text" unless told otherwise, through all
    lists on the way. Files of any size are read in parts.
    """
    from bkray.data.items import texts
    from bkray.data.lengths import counter
    from bkray.data.lengths import lengths as measured

    found = measured(texts(file, field or ()), max_length, counter(tokenizer))
    if as_json:
        print_json({"file": str(file), **dataclasses.asdict(found), "advice": found.advice})
        return 0
    of = tokenizer if tokenizer in ("bytes", "words") else f"pieces of {tokenizer}"
    print(f"{found.n_items:,} items, lengths in {of}")
    print(
        f"  mean {found.mean:,.1f}, median {found.median:,.10g}, p95 {found.p95:,}, "
        f"max {found.max:,}"
    )
    print(
        f"  truncated at {max_length:,}: {found.share_truncated:.1%} of the items, "
        f"{found.share_cut:.1%} of all tokens"
    )
    print(f"advice: {found.advice}")
    return 0

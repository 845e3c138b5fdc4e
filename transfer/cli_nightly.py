"""The commands `transfer nightly` and `transfer nights`."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Annotated, Any

import typer

from transfer.cli_common import AsJson, ConfigPath, Overrides, load, run

nightly_app = typer.Typer()

REFUSED = 11
KEPT, NOTHING_NEW = 12, 13


@nightly_app.command()
def nightly(
    config: ConfigPath,
    overrides: Overrides = None,
    tell_apart: Annotated[
        bool, typer.Option("--tell-apart", help="End with 12 when the champion is kept, 13 when nothing is new, not 0.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Ingest what is new, check it, train, and promote what proves better. Repeat it to go on with a night cut short.

    Exit codes: 0 promoted, kept or nothing new; 10 another process works on the night; 11 the data was refused; others
    as for `transfer train`.
    """
    outcomes = []

    def work() -> dict[str, Any]:
        from transfer import pipeline
        from transfer.nightly.digest import digest_of

        night, page = pipeline.nightly(load(config, overrides))
        outcomes.append(night.outcome)
        return digest_of(night, page=page)

    run(work, json)
    codes = {"refused": REFUSED, **({"kept": KEPT, "nothing new": NOTHING_NEW} if tell_apart else {})}
    sys.exit(codes.get(outcomes[0], 0))


@nightly_app.command()
def nights(
    config: ConfigPath,
    overrides: Overrides = None,
    last: Annotated[int, typer.Option(min=1, help="How many.")] = 14,
    json: AsJson = False,
) -> None:
    """List the latest nights: how each ended, and why."""

    def work() -> dict[str, Any]:
        from transfer.nightly.nights import list_nights
        from transfer.storage import open_store

        loaded = load(config, overrides)
        rows = []
        for night in islice(list_nights(open_store(loaded.storage), loaded.name), last):
            end = night.end()
            row: dict[str, Any] = {"night": night.number, "started": night.started}
            row |= {"outcome": end.outcome if end else "not over", "reason": end.reason if end else "-"}
            rows.append(row | ({"page": night.page_uri()} if json else {}))
        return {"model": loaded.name, "nights": rows}

    run(work, json)

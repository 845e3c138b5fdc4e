"""The command `transfer forget`: images that no later version of a dataset has."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from transfer.cli.common import AsJson, ConfigPath, Overrides, opened, opened_to_write, run
from transfer.runtime.numbers import many

forget_app = typer.Typer()


@forget_app.command()
def forget(
    config: ConfigPath,
    images: Annotated[
        list[str], typer.Argument(metavar="KEY|SHA256", help="Images, by their paths in the source or their digests.")
    ],
    reason: Annotated[str, typer.Option(help="Why, for the log and for whoever wonders later.")],
    remove: Annotated[
        bool, typer.Option("--remove", help="Forget them, rather than say where they were used.")
    ] = False,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Find which versions, runs and models used images; `--remove` leaves them out of all later versions."""

    def work() -> dict[str, Any]:
        from transfer.maintenance.forget import forget as forget_images

        loaded, store = (opened_to_write if remove else opened)(config, overrides)
        found = forget_images(store, loaded.dataset_name, images, reason=reason, remove=remove)
        answer: dict[str, Any] = {"dataset": loaded.dataset_name, "storage": store.uri}
        if json:
            listed = [{"sha256": each.sha256, "keys": list(each.keys)} for each in found.images]
            holders = [{"version": each.version, "images": each.splits} for each in found.holders]
            rest: dict[str, Any] = {"runs": list(found.runs), "models": list(found.models)}
            return {
                **answer,
                "forgotten": remove,
                "version": found.version,
                "images": listed,
                "held_by": holders,
                **rest,
            }
        counted = many(len(found.images), "image")
        if remove:
            answer["forgotten"] = f"{counted}; {found.version} does not have their bytes"
        else:
            answer["would forget"] = f"{counted}. Nothing is changed yet: add --remove for that."
        if found.holders:
            answer["bytes_stay_in"] = "the versions below, until `transfer datasets gc` removes them"
        answer |= {"runs": list(found.runs), "models": list(found.models)}
        answer["images"] = [{"sha256": each.sha256, "keys": list(each.keys)} for each in found.images]
        answer["held_by"] = [
            {"held by version": each.version, "images in": each.splits or "none: removed rows"}
            for each in found.holders
        ]
        return answer

    run(work, json)

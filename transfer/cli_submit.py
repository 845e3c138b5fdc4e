"""The command `transfer submit`: a job on a Ray cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfer.cli_common import AsJson, ConfigPath, Overrides, run

if TYPE_CHECKING:
    from transfer.submit import Submission

submit_app = typer.Typer()


@submit_app.command()
def submit(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A module of jobs/, as in `train`.")],
    config: ConfigPath,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- ARGUMENTS", help="More arguments of the job, after `--`.")
    ] = None,
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="The cluster, as in http://HEAD:8265. Default: RAY_ADDRESS.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--id", help="Part of the job's id: another one is another job, as for each night.")
    ] = None,
    working_dir: Annotated[Path, typer.Option(help="The working tree to ship.")] = Path(),
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job until it ends.")] = True,
    json: AsJson = False,
) -> None:
    """Run a job on a Ray cluster and follow it. Repeat it to follow a job that is there already."""
    ended: list[Submission] = []

    def work() -> dict[str, Any]:
        from transfer import submit as submission

        answer = submission.submit(
            job,
            config,
            address=address,
            overrides=overrides or [],
            arguments=arguments or [],
            id=name,
            root=working_dir,
            wait=wait,
            write=_to_stderr,
        )
        ended.append(answer)
        return {
            "job": answer.id,
            "submitted": not answer.found,
            "status": answer.status,
            "message": answer.message,
            "exit_code": answer.exit_code,
        }

    run(work, json)
    sys.exit(ended[0].exit_code)


def _to_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()

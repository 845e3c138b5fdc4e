"""The report of one evaluation: as JSON for programs, as one HTML file for people."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import JsonValue, ValidationError

from transfer.config import ServingGraph
from transfer.errors import DatasetError
from transfer.evaluation.metrics import Figures, Metrics, Mistake
from transfer.training.history import EpochRow


class Report(Figures):
    """What is known about a run after its evaluation on one split.

    `dataset`: reference of the dataset version, `name/00000001`. `base`: the pretrained network, in words. `mistakes`:
    the most confident ones, worst first. `counts`: images of each class in each split, {split: {class: n}}. `config`:
    the resolved configuration. `graph`: the `publish.graph` that answered; None in reports of earlier releases.
    `is_exact`: whether it was that very graph, and not a faster way that rounds otherwise. `rounds_coarsely`: whether
    it computed in half precision somewhere, or on a GPU in TF32.
    """

    name: str
    dataset: str
    run_id: str
    split: str
    base: str
    metrics: Metrics
    history: list[EpochRow]
    mistakes: list[Mistake]
    counts: dict[str, dict[str, int]]
    config: dict[str, JsonValue]
    graph: ServingGraph | None = None
    is_exact: bool = True
    rounds_coarsely: bool = False

    def to_json(self) -> bytes:
        """UTF-8 JSON: the same report always gives the same bytes, and every number in it is finite."""
        document = self.model_dump(mode="json")
        return (json.dumps(document, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Report:
        """Read what `to_json` wrote. Raises DatasetError when it is something else."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the document"
            raise DatasetError(
                f"This is not a report of this version of the library: {place}: {first['msg']} "
                f"({error.error_count()} problems).",
                advice="Evaluate the run again.",
            ) from error


def render_html(report: Report, *, thumbnails: Mapping[str, bytes]) -> str:
    """One self-contained HTML page: no script, nothing loaded from anywhere, the same text for the same report.

    `thumbnails`: encoded images (JPEG, PNG, …) by the keys of the report's mistakes. A mistake without a readable image
    gets a placeholder.
    """
    # matplotlib and Pillow cost a second that reading a report need not pay.
    from transfer.evaluation.page import render

    return render(report, thumbnails)

"""A screen: several networks on the same images, the best first, stored with its page."""

from __future__ import annotations

from functools import partial

from transfer.catalog import layout
from transfer.config import Config
from transfer.dataset.manifest import Dataset
from transfer.dataset.splits import SPLITS
from transfer.errors import ClusterError
from transfer.evaluation.sampled import SAMPLE_ROWS
from transfer.runtime.actors import Actors, Task
from transfer.runtime.progress import progress
from transfer.screening.candidates import Candidate
from transfer.screening.page import render
from transfer.screening.result import FailedBase, ScreenedCut, ScreenResult, StoredScreen
from transfer.screening.work import ScreenWork
from transfer.storage import Log, Store, put_content

TASK = Task("screen", ClusterError, "Repeat the command: features that are cached are found.")


def screen_bases(
    config: Config, dataset: Dataset, store: Store, candidates: list[Candidate]
) -> tuple[ScreenResult, str]:
    """Screen some networks on the workers, one network after the other on each. Returns the result and its page's name.

    Raises ClusterError if workers keep dying, OutOfMemoryError, StorageError.
    """
    cuts: list[ScreenedCut] = []
    failed: list[FailedBase] = []
    with (
        Actors[Candidate, list[ScreenedCut] | FailedBase](
            ScreenWork, config, dataset.number, workers=config.workers, task=TASK
        ) as actors,
        progress("screen", total=len(candidates), unit="networks") as advance,
    ):
        for _, found in actors.map(candidates, in_order=True):
            if isinstance(found, FailedBase):
                failed.append(found)
            else:
                cuts += found
            advance(1)
    result = ScreenResult(
        name=config.name,
        dataset=dataset.reference,
        images=min(dataset.rows("train"), SAMPLE_ROWS),
        training_images=dataset.rows("train"),
        all_images=sum(dataset.rows(split) for split in SPLITS),
        replicas=config.workers.replicas,
        cuts=tuple(sorted(cuts, key=lambda cut: (-cut.right, -cut.logme, cut.ms))),
        failed=tuple(failed),
    )
    return result, _store(store, result)


def _store(store: Store, result: ScreenResult) -> str:
    log = Log(store, layout.screens_log(result.name))
    page, sha256 = put_content(store, partial(layout.screen_page, result.name), render(result).encode())
    log.append(StoredScreen(result=result, page=sha256).model_dump(mode="json"))
    return page

"""A look at new images before anything is trained: whether they look different, and what the champion says of them.

Features are what is kept of the frozen part, which training needs anyway: what is computed here is found there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from transfer.cluster import run_where
from transfer.config import ChecksConfig, Config
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.dataset.same_classes import places_among
from transfer.dataset.shards import read_shard
from transfer.nightly.change import Difference, compare, trained_on
from transfer.nightly.checks import NO_CHAMPION, check_agreement, check_drift, not_asked, too_few
from transfer.nightly.drift import FEWEST_IMAGES, SAMPLE_IMAGES, drift
from transfer.nightly.sample import ShardRows, sample
from transfer.nightly.summary import Finding
from transfer.registry.versions import ModelVersion, load_version
from transfer.storage import Store, open_store
from transfer.training.run import Run, load_run

AGREEMENT_IMAGES = 512
"""New images that the champion is asked about, at most."""


def look_from_driver(config: Config, *, run_id: str, champion: int | None) -> list[Finding]:
    """`look_at_new` in a process with TensorFlow, after a cluster has computed what it looks at as for training.

    Raises what `look_at_new` and `extract_before_training` raise.
    """
    checks = config.nightly.checks
    if champion is None or checks.drift.action == checks.agreement.action == "off":
        return _without_looking(checks)
    if config.workers.count and checks.drift.action != "off":
        from transfer.training.ray_workers import extract_before_training

        extract_before_training(load_run(open_store(config.storage), run_id, config))
    return run_where(config.workers, _look_at_new, config, run_id, champion)


def look_at_new(config: Config, *, run_id: str, champion: int | None) -> list[Finding]:
    """The checks `drift` and `agreement` of what is new since the champion's dataset, for a run that was opened.

    For `drift`, what the run will train on is computed and kept here, where it is to be kept and is not yet. Raises the
    TransferError that this meets.
    """
    checks = config.nightly.checks
    if champion is None or checks.drift.action == checks.agreement.action == "off":
        return _without_looking(checks)
    store = open_store(config.storage)
    run = load_run(store, run_id, config)
    now = load_dataset(store, run.dataset_name, run.dataset_number)
    version = load_version(store, config.name, champion)
    before = trained_on(store, version)
    difference = compare(store, before, now)
    why = too_few(sum(int(rows.is_new.sum()) for rows in difference.new), checks)
    if why is not None:
        return _without_looking(checks, why)
    return [*_drift(run, now, difference), *_agreement(store, version, before, now, difference, checks)]


def _look_at_new(config: Config, run_id: str, champion: int | None) -> list[Finding]:
    return look_at_new(config, run_id=run_id, champion=champion)


def _without_looking(checks: ChecksConfig, why: str = NO_CHAMPION) -> list[Finding]:
    return [*not_asked("drift", why, checks), *not_asked("agreement", why, checks)]


def _drift(run: Run, now: Dataset, difference: Difference) -> list[Finding]:
    checks = run.config.nightly.checks
    if checks.drift.action == "off":
        return []
    before, new = _to_train_on(now, difference)
    few = f"Fewer than {FEWEST_IMAGES} images to train on, of classes that both have, are new or are not."
    if not before or not new:
        return not_asked("drift", few, checks)

    from transfer.nightly.features import kept_features

    found = kept_features(run, now, [before, new])
    if found is None:
        why = "No phase keeps its frozen part's output (see activations.keep), so there are no features to compare."
        return not_asked("drift", why, checks)
    (features_before, labels_before), (features_new, labels_new) = found
    area = drift(
        features_before,
        features_new,
        labels_before=labels_before,
        labels_new=labels_new,
        seed=run.config.training.seed,
    )
    if area is None:
        return not_asked("drift", few, checks)
    return check_drift(area, before=len(labels_before), new=len(labels_new), checks=checks)


def _to_train_on(now: Dataset, difference: Difference) -> tuple[list[ShardRows], list[ShardRows]]:
    """Some images of the training split that are not new, and some that are."""
    is_new = {shard.sha256: np.zeros(shard.rows, bool) for shard in now.shards_of("train")}
    is_new |= {rows.shard.sha256: rows.is_new for rows in difference.new if rows.shard.split == "train"}
    before, new = (
        sample(
            [ShardRows(shard, np.flatnonzero(is_new[shard.sha256] == side)) for shard in now.shards_of("train")],
            SAMPLE_IMAGES,
        )
        for side in (False, True)
    )
    return before, new


def _agreement(
    store: Store, version: ModelVersion, before: Dataset, now: Dataset, difference: Difference, checks: ChecksConfig
) -> list[Finding]:
    if checks.agreement.action == "off":
        return []
    # What the champion calls each class; -1: it does not know it.
    known = np.full(len(now.classes), -1)
    places = places_among(version.classes, now.classes, same_dataset=before.name == now.name)
    for index, place in enumerate(places):
        if place is not None:
            known[place] = index
    asked = sample(
        (ShardRows(rows.shard, np.flatnonzero(rows.is_new & (known[rows.labels] >= 0))) for rows in difference.new),
        AGREEMENT_IMAGES,
    )
    images = sum(map(len, asked))
    if images < checks.min_new_images:
        why = f"Of the new images {images:,} are of classes that the serving model knows, too few to say anything."
        return not_asked("agreement", why, checks)
    right = _right_answers(store, version, asked, known)
    # On its own test split, which it was not trained on either.
    expected = version.provenance["metrics"]["accuracy"]
    return check_agreement(right / images, expected, images=images, checks=checks)


def _right_answers(store: Store, version: ModelVersion, asked: list[ShardRows], known: np.ndarray) -> int:
    """For how many of these images the champion answers their class, `known` [label]."""
    from transfer.registry.served import BATCH_SIZE, load_answers

    right = 0
    with tempfile.TemporaryDirectory(prefix="transfer-champion-") as folder:
        answers = load_answers(store, version, Path(folder))
        for rows in asked:
            table = read_shard(store, rows.shard, columns=["image", "label"]).take(rows.rows)
            for batch in table.to_batches(max_chunksize=BATCH_SIZE):
                answered = answers(batch["image"].to_pylist())["class_index"]
                right += int(np.sum(answered == known[batch["label"].to_numpy()]))
    return right

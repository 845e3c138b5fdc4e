"""Checks of new data before training: counts with their limits, and checks of the new images themselves.

The features are the ones that training caches anyway, so training reuses those that are computed here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from transfer.catalog.model import ModelVersion
from transfer.config import ChecksConfig, Config
from transfer.config.image_input import depth_title
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.dataset.shards import read_shard
from transfer.nights.dataset_diff import Difference, compare
from transfer.nights.drift import FEWEST_IMAGES, SAMPLE_IMAGES, ShardRows, drift, sample
from transfer.nights.summary import DataChange, Finding
from transfer.registry.describe import classes_in, trained_on
from transfer.registry.versions import load_version
from transfer.runtime.cluster import run_where
from transfer.runtime.numbers import digits_apart, percent, percents_apart
from transfer.storage import Store, open_store
from transfer.training.run import Run, load_run

NO_CHAMPION = "No model serves yet, so there is nothing to compare with."
_NO_IMAGES = "The serving model was trained on none of the present classes, so there is nothing to compare with."
_CHANCE = 0.99
_DRAWS = 200
"""Chance alone fails `label_shift` with probability 1 - `_CHANCE` at most, estimated from `_DRAWS` random draws."""
AGREEMENT_IMAGES = 512
"""Largest number of new images that the champion predicts."""


def check_change(change: DataChange, checks: ChecksConfig) -> list[Finding]:
    """The checks that need only counts: `volume`, `vanished`, `flood`, `rejects` and `label_shift`."""
    return [
        *_volume(change, checks),
        *_vanished(change, checks),
        *_flood(change, checks),
        *_rejects(change, checks),
        *_label_shift(change, checks),
    ]


def _volume(change: DataChange, checks: ChecksConfig) -> list[Finding]:
    why = _nothing_before(change)
    if why is not None:
        return not_asked("volume", why, checks)
    before = sum(each.before for each in change.classes)
    share = change.gone / before
    found, limit = percents_apart(share, checks.volume.limit)
    text = f"{change.gone:,} of {before:,} images are gone or have another class now: {found} (limit {limit})."
    return _finding("volume", share, text, checks)


def _vanished(change: DataChange, checks: ChecksConfig) -> list[Finding]:
    why = _nothing_before(change)
    if why is not None:
        return not_asked("vanished", why, checks)
    names = [each.name for each in change.classes if each.before and each.before + each.new == each.gone]
    shown = f": {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else ""
    text = f"Classes that lost all of their images: {len(names):,} (limit {checks.vanished.limit:g}){shown}."
    return _finding("vanished", len(names), text, checks)


def _flood(change: DataChange, checks: ChecksConfig) -> list[Finding]:
    why = _nothing_before(change) or too_few(change.new, checks)
    if why is not None:
        return not_asked("flood", why, checks)
    limit = checks.flood.limit
    before = sum(each.before for each in change.classes)
    # A class that had such a large share before is not a change.
    small = [each for each in change.classes if each.before / before <= limit]
    most = max(small, key=lambda each: each.new, default=None)
    if most is None:
        return not_asked("flood", f"Each class made up more than {percent(limit)} of the earlier images.", checks)
    share = most.new / change.new
    found, allowed = percents_apart(share, limit)
    text = (
        f"The class {most.name} makes up {found} of the {change.new:,} new images (limit {allowed}); it made up "
        f"{percent(most.before / before)} of the earlier ones."
    )
    return _finding("flood", share, text, checks)


def _rejects(change: DataChange, checks: ChecksConfig) -> list[Finding]:
    images = change.images + change.rejected
    share = change.rejected / max(images, 1)
    found, limit = percents_apart(share, checks.rejects.limit)
    text = f"Ingest refused {change.rejected:,} of {images:,} images: {found} (limit {limit})."
    return _finding("rejects", share, text, checks)


def _label_shift(change: DataChange, checks: ChecksConfig) -> list[Finding]:
    why = _nothing_before(change) or too_few(change.new, checks)
    if why is not None:
        return not_asked("label_shift", why, checks)
    before = np.array([each.before for each in change.classes], np.float64)
    new = np.array([each.new for each in change.classes], np.float64)
    distance = _distance(new, before)
    # A few images of many classes differ in distribution from the rest even if they are drawn from it at random.
    drawn = np.random.default_rng(0).multinomial(change.new, before / before.sum(), size=_DRAWS)
    chance = float(np.quantile([_distance(each, before) for each in drawn], _CHANCE))
    limit = max(checks.label_shift.limit, chance)
    digits = digits_apart(distance, limit, least=2)
    by_chance = f", which {change.new:,} images may reach by chance" if chance > checks.label_shift.limit else ""
    text = (
        f"The class distributions of the {change.new:,} new and of the earlier images have a total variation distance "
        f"of {distance:.{digits}f} (0: alike, 1: none in common; limit {limit:.{digits}f}{by_chance})."
    )
    return _finding("label_shift", distance, text, checks, limit=limit)


def _distance(counts: np.ndarray, others: np.ndarray) -> float:
    """Total variation distance between two distributions, given as counts."""
    return float(np.abs(counts / counts.sum() - others / others.sum()).sum() / 2)


def _nothing_before(change: DataChange) -> str | None:
    """The reason if no earlier image has one of the present classes, as after dropping classes or starting over."""
    if change.before is None:
        return NO_CHAMPION
    return None if any(each.before for each in change.classes) else _NO_IMAGES


def look_at_new(config: Config, *, run_id: str, champion: int | None) -> list[Finding]:
    """The checks `drift` and `agreement` of images that are new since the champion's dataset.

    For `drift`, missing cached features of the run are computed first, on the workers if there are any.

    Args:
        config: `nightly.checks` has the limits.
        run_id: Id of the opened run that the night will train.
        champion: Number of the version that serves; None if none does.

    Raises:
        TransferError: Reading, feature extraction or prediction failed.
    """
    checks = config.nightly.checks
    if champion is None or checks.drift.action == checks.agreement.action == "off":
        return _without_looking(checks)
    if config.workers.count and checks.drift.action != "off":
        from transfer.training.distributed import extract_before_training

        extract_before_training(load_run(open_store(config.storage), run_id, config))
    return run_where(config.workers, _look, config, run_id, champion)


def _look(config: Config, run_id: str, champion: int) -> list[Finding]:
    """`look_at_new` in a process with TensorFlow."""
    checks = config.nightly.checks
    store = open_store(config.storage)
    run = load_run(store, run_id, config)
    now = load_dataset(store, run.dataset_name, run.dataset_number)
    version = load_version(store, config.name, champion)
    before = trained_on(store, version)
    if before is None:
        return _without_looking(checks, "The serving model was not trained here: there is nothing to compare with.")
    renames = config.dataset.rename_classes
    difference = compare(store, before, now, renames=renames)
    why = too_few(sum(int(rows.is_new.sum()) for rows in difference.new), checks)
    if why is not None:
        return _without_looking(checks, why)
    if before.depth != now.depth:
        # It may refuse the new images, or see them otherwise than the labels were ever compared with.
        why = (
            f"The serving model sees dataset.depth {depth_title(before.depth)}, and now it is {depth_title(now.depth)}."
        )
        return [*_drift(run, now, difference), *not_asked("agreement", why, checks)]
    return [*_drift(run, now, difference), *_agreement(run, version, now, difference)]


def _without_looking(checks: ChecksConfig, why: str = NO_CHAMPION) -> list[Finding]:
    return [*not_asked("drift", why, checks), *not_asked("agreement", why, checks)]


def _drift(run: Run, now: Dataset, difference: Difference) -> list[Finding]:
    checks = run.config.nightly.checks
    if checks.drift.action == "off":
        return []
    before, new = _to_train_on(now, difference)
    few = f"The check needs {FEWEST_IMAGES} new and {FEWEST_IMAGES} earlier training images, of classes that both have."
    if not before or not new:
        return not_asked("drift", few, checks)

    from transfer.nights.drift_features import cached_features

    found = cached_features(run, now, [before, new])
    if found is None:
        why = "No phase has cached features (see features.cache), so there are none to compare."
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
    """Samples of the training split: images that are not new, and images that are."""
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


def _agreement(run: Run, version: ModelVersion, now: Dataset, difference: Difference) -> list[Finding]:
    checks = run.config.nightly.checks
    if checks.agreement.action == "off":
        return []
    names = classes_in(run.store, now, version, run.config.dataset.rename_classes)
    answered = {name for name, own in zip(names, version.classes, strict=True) if own not in version.untrained_classes}
    is_known = np.array([name in answered for name in now.classes])
    asked = sample(
        (ShardRows(rows.shard, np.flatnonzero(rows.is_new & is_known[rows.labels])) for rows in difference.new),
        AGREEMENT_IMAGES,
    )
    images = sum(map(len, asked))
    if images < checks.min_new_images:
        why = (
            f"The serving model knows the classes of {images:,} new images; the check needs at least "
            f"{checks.min_new_images:,} (checks.min_new_images)."
        )
        return not_asked("agreement", why, checks)
    right = _right_answers(run.store, version, asked, np.array(names), np.array(now.classes))
    # The accuracy on the version's own held-out split, which it was not trained on either.
    expected = version.of_run.metrics.accuracy
    return check_agreement(right / images, expected, images=images, checks=checks)


def _right_answers(
    store: Store, version: ModelVersion, asked: list[ShardRows], names: np.ndarray, classes: np.ndarray
) -> int:
    """Number of images that the champion predicts correctly. `names`: by its class index, `classes`: by label."""
    from transfer.registry.published_model import BATCH_SIZE, load_answers

    right = 0
    with tempfile.TemporaryDirectory(prefix="transfer-champion-") as folder:
        answers = load_answers(store, version, Path(folder))
        for rows in asked:
            table = read_shard(store, rows.shard, columns=["image", "label"]).take(rows.rows)
            for batch in table.to_batches(max_chunksize=BATCH_SIZE):
                answered = answers(batch["image"].to_pylist())["class_index"]
                right += int(np.sum(names[answered] == classes[batch["label"].to_numpy()]))
    return right


def check_drift(area: float, *, before: int, new: int, checks: ChecksConfig) -> list[Finding]:
    """The check `drift`. `area`: area under the ROC curve; `before`, `new`: numbers of images."""
    limit = checks.drift.limit
    text = (
        f"A classifier tells {new:,} new images from {before:,} earlier ones with an area under the ROC curve of "
        f"{area:.{digits_apart(area, limit, least=2)}f} (0.5: it cannot tell them apart; limit {limit:g})."
    )
    return _finding("drift", area, text, checks)


def check_agreement(accuracy: float, expected: float, *, images: int, checks: ChecksConfig) -> list[Finding]:
    """The check `agreement`. `accuracy`: of the champion on `images` new images; `expected`: on held-out images."""
    drop, limit = 100 * (expected - accuracy), 100 * checks.agreement.limit
    digits = digits_apart(drop, limit, least=3, kind="g")
    dropped = f"The drop is {drop:.{digits}g} points" if drop > 0 else "There is no drop"
    text = (
        f"The serving model agrees with {percent(accuracy)} of the labels of {images:,} new images "
        f"({percent(expected)} on held-out images). {dropped}; the limit is {limit:.{digits}g}."
    )
    return _finding("agreement", expected - accuracy, text, checks)


def not_asked(check: str, why: str, checks: ChecksConfig) -> list[Finding]:
    """Finding of a skipped check. `why`: the reason, as a sentence."""
    return _finding(check, None, why, checks)


def too_few(new: int, checks: ChecksConfig) -> str | None:
    """The reason if `new` images are too few to compare distributions, features or labels; otherwise None."""
    if new >= checks.min_new_images:
        return None
    there = f"There is {new:,} new image" if new == 1 else f"There are {new:,} new images"
    return f"{there}; the check needs at least {checks.min_new_images:,} (checks.min_new_images)."


def refusals(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that end a night before training."""
    return [finding for finding in findings if not finding.passed and finding.action == "refuse"]


def _finding(
    check: str, found: float | None, text: str, checks: ChecksConfig, *, limit: float | None = None
) -> list[Finding]:
    """The finding of a check; empty if the check is off. `limit`: default is the configured one."""
    config = getattr(checks, check)
    if config.action == "off":
        return []
    limit = config.limit if limit is None else limit
    passed = found is None or found <= limit
    return [Finding(check=check, found=found, limit=limit, passed=passed, action=config.action, text=text)]

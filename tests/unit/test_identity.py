"""Whatever decides a result is part of the id that names it: every key of the configuration, one after the other.

A key that somebody adds is either in an id at once, or fails a test here until it stands in a list, with a reason.
"""

import shutil

import pytest

from tests.changed_keys import changed_keys, is_listed
from tests.digits import digits_config
from tests.published import first_version
from transfer.config import NOT_LEARNED, SchedulerConfig, SweepConfig, parse_config
from transfer.demo import BASE_PATH
from transfer.errors import BaseChangedError
from transfer.nights.night import judged_digest
from transfer.nights.records import config_digest
from transfer.storage import open_store
from transfer.training.run import run_id_for
from transfer.tuning.plan import pack_key
from transfer.tuning.records import open_sweep

ONE_PHASE = [{"unfreeze": 0, "epochs": 8, "optimizer": "adamw", "early_stopping": {}}]
NOT_OF_A_RUN = {
    "where its objects are, and how they are reached": ["storage.*"],
    "which images there are is said by the dataset version": ["dataset.*"],
    "where it is computed: the order of the images is that of the global batch": [
        "workers.count",
        "workers.min_count",
        "workers.gpus_per_worker",
        "workers.cpus_per_worker",
        "workers.collectives",
    ],
    "when it is given up": [
        "workers.max_failures",
        "workers.start_timeout_s",
        "workers.hang_timeout_s",
        "workers.stall_timeout_s",
    ],
    "where it could go on from": ["training.checkpoint_steps"],
    "what becomes of it when it is trained": ["publish.*", "baselines.*"],
    "what is reckoned with": ["cost.*"],
    "whether a base is refused": ["base.accept_head"],
    "the id of a sweep has it": ["sweep"],
    "the digest of a night has it": ["nightly.*"],
}
NOT_OF_A_SWEEP = {
    "how many trials are computed at a time, and by what": ["sweep.concurrency", "sweep.gpus_per_trial"],
    "a trial that failed is tried again": ["sweep.max_failures"],
    "where it is told, too": ["sweep.mlflow"],
}
NOT_OF_A_PACK = {
    "held side by side by one program": [
        "phases.0.learning_rate",
        "phases.0.optimizer.weight_decay",
        "head.dropout",
        "head.l2",
        "training.label_smoothing",
        "training.seed",
    ],
    "for people": ["name"],
    "where it could go on from": ["training.checkpoint_steps"],
}


@pytest.fixture(scope="module")
def dataset():
    return first_version("digits", ["0", "1"])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identity")
    config = digits_config(folder / "images", str(folder / "storage"), phases=ONE_PHASE, workers={"count": 2})
    # Cropped, for only then its share may be another.
    return config.model_copy(update={"base": config.base.model_copy(update={"fit": "crop"})})


@pytest.fixture(scope="module")
def changed(config):
    """Every key, but those inside of `sweep`, with another value."""
    sweep = {"space": {"head.dropout": [0.1, 0.2]}}
    others = {"nightly__webhook_env": "HOOK", "publish__promote": "never", "dataset__background": "white"}
    others["dataset__splits"] = {"train": "train"}
    found = changed_keys(config, sweep=sweep, **others)
    # LoRA needs blocks, and the trials of a pack train none.
    assert [key for key, other in found.items() if other is None] == ["phases.0.lora"]
    del found["phases.0.lora"]
    return found


def test_each_key_that_decides_what_is_learned_makes_another_run(config, changed, dataset):
    before = run_id_for(config, dataset)
    same = {key for key, other in changed.items() if run_id_for(other, dataset) == before}
    assert same == {key for key in changed if is_listed(key, NOT_OF_A_RUN)}


def test_each_key_of_adapters_makes_another_run_and_adapters_no_pack(config, dataset):
    adapted = parse_config({**config.model_dump(), "phases": [{"unfreeze": 1, "lora": {}}]})
    changed = changed_keys(adapted, "phases.0.lora.")
    assert len(changed) == 3
    assert len({run_id_for(each, dataset) for each in (adapted, *changed.values())}) == 4
    assert pack_key(adapted) is None


def test_each_key_but_where_it_runs_makes_another_night_of_it(config, changed, dataset):
    of_night = {key for key, other in changed.items() if config_digest(other) == config_digest(config)}
    outside = {key for key in changed if key.partition(".")[0] in {"storage", "workers", "sweep", "cost"}}
    outside.add("publish.classes")
    assert of_night == {*outside, "training.checkpoint_steps", "nightly.keep_runs", "nightly.claim_expires_s"}
    # A judgement is found again only where nothing that it rests on is another: promoting is a part of it.
    judged = {key for key, other in changed.items() if judged_digest(other, dataset) == judged_digest(config, dataset)}
    judging = {key for key in changed if key.startswith("nightly.") or key == "publish.promote"}
    not_learned = {key for key in changed if is_listed(key, NOT_OF_A_RUN)}
    # What a night tidies up afterwards is no part of it.
    assert judged == not_learned - judging | {"nightly.keep_runs", "nightly.claim_expires_s"}


def test_each_key_that_decides_what_is_tried_makes_another_sweep(config, dataset):
    store, found = open_store(config.storage), {}
    for scheduler in ("none", "asha", "median", "pbt"):
        base = {"space": {"phases.0.learning_rate": [1e-3, 1e-2, 1e-1, 1.0]}, "trials": 4, "scheduler": scheduler}
        swept = parse_config({**config.model_dump(), "workers": {"count": 1, "gpus_per_worker": 1}, "sweep": base})
        values = {"sweep__space": {"head.l2": [0.1]}, "sweep__folds": 2, "sweep__gpus_per_trial": 0.5}
        before = open_sweep(store, swept, dataset).id
        for key, other in changed_keys(swept, "sweep.", **values).items():
            if other is not None:
                found[key] = open_sweep(store, other, dataset).id == before
    assert {key for key, is_same in found.items() if is_same} == {
        key for key in found if is_listed(key, NOT_OF_A_SWEEP)
    }
    keys = {f"sweep.{name}" for name in SweepConfig.model_fields} - {"sweep.scheduler"}
    assert set(found) == keys | {f"sweep.scheduler.{name}" for name in SchedulerConfig.model_fields}


def test_each_key_that_a_program_cannot_hold_side_by_side_makes_another_pack(config, changed):
    same = {key for key, other in changed.items() if pack_key(other) == pack_key(config)}
    # Trials of a sweep have one dataset, whose section is not left out.
    nowhere = {key for key in changed if key.partition(".")[0] in NOT_LEARNED}
    assert same == nowhere | {key for key in changed if is_listed(key, NOT_OF_A_PACK)}


def test_a_base_that_is_searched_is_part_of_its_sweep_and_a_file_replaced_meanwhile_is_refused(
    config, dataset, tmp_path
):
    other = shutil.copy(BASE_PATH, tmp_path / "other.keras")
    space = {"base.model": [config.base.model, str(other)]}
    swept = config.model_copy(update={"sweep": SweepConfig(space=space, search="grid")})
    sweep = open_sweep(open_store(config.storage), swept, dataset)
    sweep.check_bases(dataset)
    other.write_bytes(b"another")
    with pytest.raises(BaseChangedError, match=r"base\.model"):
        sweep.check_bases(dataset)
    assert open_sweep(open_store(config.storage), swept, dataset).id != sweep.id


def test_the_same_file_in_another_place_makes_the_same_of_everything(config, dataset, tmp_path):
    def names(path):
        base = config.base.model_copy(update={"model": str(path)})
        sweep = SweepConfig(space={"base.model": [str(path), "MobileNetV2"]}, search="grid")
        there = config.model_copy(update={"base": base, "sweep": sweep})
        store = open_store(there.storage)
        digests = config_digest(there), judged_digest(there, dataset)
        return run_id_for(there, dataset), open_sweep(store, there, dataset).id, *digests

    (tmp_path / "another").mkdir()
    places = [shutil.copy(BASE_PATH, tmp_path / name) for name in ("base.keras", "another/name.keras")]
    assert names(places[0]) == names(places[1])


def test_another_file_under_the_name_of_the_base_makes_another_of_everything(config, dataset, tmp_path):
    path = shutil.copy(BASE_PATH, tmp_path / "base.keras")
    base = config.base.model_copy(update={"model": str(path)})
    sweep = SweepConfig(space={"head.dropout": [0.1, 0.2]}, search="grid")
    on_file = config.model_copy(update={"base": base, "sweep": sweep})

    def names():
        return (
            run_id_for(on_file, dataset),
            open_sweep(open_store(on_file.storage), on_file, dataset).id,
            config_digest(on_file),
            judged_digest(on_file, dataset),
        )

    before = names()
    path.write_bytes(b"another")
    assert all(now != then for now, then in zip(names(), before, strict=True))
    shutil.copy(BASE_PATH, path)
    assert names() == before

from pathlib import Path
from typing import Annotated

import pytest

from tests.published import first_version
from transfer.config import Config, Decides, Varies, keys_that_vary, load_config
from transfer.config.decides import decided_by, deciding, why_not_searched
from transfer.config.explain import section_in
from transfer.config.section import Section
from transfer.nights.night import judged_digest
from transfer.nights.records import config_digest
from transfer.storage import open_store
from transfer.training.run import run_id_for
from transfer.tuning.plan import pack_key
from transfer.tuning.records import open_sweep

GOLDEN = Path(__file__).parent / "golden"


def unstated(model, above=""):
    """Dotted keys of which nobody says what they decide."""
    found = []
    for name, field in model.model_fields.items():
        section = section_in(field.annotation)
        if section is not None:
            found += unstated(section, f"{above}{name}.")
        elif not decided_by(model, name):
            found.append(above + name)
    return found


def test_every_key_states_what_it_decides():
    assert unstated(Config) == []


def test_a_new_section_and_a_new_key_are_asked_what_they_decide():
    class Inner(Section):
        key: int = 0

    class Stated(Section, decides=Decides.OUTPUT):
        key: int = 0

    class Outer(Section):
        inner: list[Inner]
        stated: Stated | None = None
        alone: Annotated[int, Decides.DATA] = 0
        new: int = 0

    assert unstated(Outer) == ["inner.key", "new"]


def test_a_key_may_decide_something_else_than_its_section():
    class Inner(Section, decides=Decides.PLACEMENT):
        where: int = 1
        what: Annotated[int, Decides.LEARNING] = 2

    class Outer(Section, decides=Decides.LEARNING):
        inner: Inner = Inner()
        several: tuple[int, ...] = (3,)
        parts: list[Inner]
        speed: Annotated[int, Decides.PLACEMENT] = 4
        rate: Annotated[int, Varies.IN_PACK] = 5

    section = Outer(parts=[Inner(), Inner()])
    found = deciding(section, Decides.LEARNING, but=Varies.IN_PACK)
    assert found == {"inner": {"what": 2}, "several": [3], "parts": [{"what": 2}, {"what": 2}]}
    assert deciding(section, Decides.DATA) == {}


def test_a_stated_fact_changes_no_error():
    class Plain(Section):
        share: float = 0.0

    class Stated(Section, decides=Decides.LEARNING):
        share: Annotated[float, Decides.FEATURES, Varies.IN_PACK] = 0.0

    def errors_of(model):
        with pytest.raises(ValueError, match="share") as caught:
            model(share="much")
        return caught.value.errors()

    assert errors_of(Stated) == errors_of(Plain)
    assert Stated.model_json_schema()["properties"] == Plain.model_json_schema()["properties"]


@pytest.mark.parametrize(
    ("name", "run", "night", "judged", "pack"),
    [
        ("full", "flowers-dc87190c2fdd", "68ab96291ace64ac", "5e2c66831ed96682", None),
        ("minimal", "flowers-ba2833bdc44a", "544610823973658a", "c955dea9ef697cdc", "5539248135c1ac46"),
    ],
)
def test_runs_nights_and_packs_keep_their_ids(name, run, night, judged, pack):
    """Storage is full of them: with other ids, what is there would be trained again."""
    config, dataset = load_config(GOLDEN / f"{name}.yaml"), first_version("digits", ["0", "1"])
    assert run_id_for(config, dataset) == run
    assert config_digest(config).startswith(night)
    assert judged_digest(config, dataset).startswith(judged)
    assert pack_key(config) == pack


def test_sweeps_keep_their_ids(tmp_path):
    config, dataset = load_config(GOLDEN / "full.yaml", [f"storage={tmp_path}"]), first_version("digits", ["0", "1"])
    assert open_sweep(open_store(config.storage), config, dataset).id == "flowers-728262770a8c"


def test_a_sweep_may_search_all_that_decides_what_is_learned_on_the_same_images():
    searched = {name for name in Config.model_fields if why_not_searched(Config, name) is None}
    assert searched == {"base", "head", "augmentation", "phases", "training"}
    assert why_not_searched(Config, "phases.0.optimizer.momentum") is None
    assert why_not_searched(Config, "nobody.name") is None, "another check says that it does not exist"


def test_what_may_change_in_training_and_what_is_not_compiled_in():
    assert keys_that_vary(Config, Varies.IN_TRAINING) == (
        "head.dropout",
        "head.l2",
        "phases.*.learning_rate",
        "phases.*.optimizer.momentum",
        "phases.*.optimizer.weight_decay",
        "phases.*.optimizer.clip_norm",
        "training.label_smoothing",
    )
    assert keys_that_vary(Config, Varies.IN_WARM_START) == (
        "base.image_size",
        "base.fit",
        "base.crop_share",
        "base.antialias",
        "base.accept_head",
    )
    assert keys_that_vary(Config, Varies.IN_PROGRAM) == (
        "phases.*.learning_rate",
        "training.seed",
        "training.class_weights",
    )

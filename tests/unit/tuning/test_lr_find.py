"""Finding a learning rate: what is kept of it, and what is left alone."""

import shutil

import pytest

from tests.digits import digits_config, ingest_some_digits
from transfer import jobs
from transfer.errors import ConfigError
from transfer.storage import open_store
from transfer.tuning.lr_find import check_range, find_rate

RANGE = {"phase": 0, "low": 1e-6, "high": 1.0, "steps": 30}


@pytest.fixture
def digits(tmp_path):
    source, dataset = ingest_some_digits(tmp_path)
    return digits_config(source, str(tmp_path / "storage")), dataset


def test_the_curve_and_its_page_are_kept_and_the_same_test_is_found_again(digits):
    config, dataset = digits
    store = open_store(config.storage)
    found, page = find_rate(store, config, dataset, **RANGE)
    assert found.setting == f"phases.0.learning_rate={found.suggestion:.1e}"
    assert f"{found.suggestion:.3g}"[:3] in store.read(page).decode()
    # Neither images nor features are there to make it again.
    for folder in ("shards", "features"):
        shutil.rmtree(f"{store.uri}/{folder}")
    assert find_rate(store, config, dataset, **RANGE) == (found, page)


def test_no_run_comes_of_it(digits):
    config, _ = digits
    # Else it ingests, and what it has seen is remembered.
    jobs.ingest(config)
    before = {each.name for each in open_store(config.storage).list()}
    found, uri = jobs.lr_find(config, **RANGE)
    new = {each.name for each in open_store(config.storage).list()} - before
    assert {name.split("/")[0] for name in new} <= {"lr_find", "features"}
    assert uri.startswith(f"{config.storage.uri}/lr_find/{found.id}/")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"phase": 2}, "There is no phase 2"),
        ({"low": 2.0}, "from 2 to 1"),
        ({"low": 0.0}, "from 0"),
        ({"steps": 19}, "19"),
    ],
)
def test_a_test_that_cannot_be_made_is_refused_first(digits, change, said):
    with pytest.raises(ConfigError, match=said):
        check_range(digits[0], **(RANGE | change))

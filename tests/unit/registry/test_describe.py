"""Which held-out images a version was not trained on, where its dataset version records its splits."""

import pytest

from tests.published import first_version, provenance_of
from tests.sourcing import image
from transfer.catalog.model import ModelVersion
from transfer.dataset.manifest import Splitting, dataset_log
from transfer.dataset.shards import write_shard
from transfer.registry.describe import NeverTrainedOn
from transfer.storage import open_store, sha256_hex

SPLIT_OF = {0: "train", 1: "validation", 2: "test"}
GIVEN = Splitting(given=("train", "test"), given_by="folders", validation=0.2, test=0.0)
GROUPED = Splitting(groups_by="column `patient`", validation=0.2, test=0.2)


def digest(seed):
    return sha256_hex(image(seed))


def counting(storage, split, *, before, now):
    """Of images 0 to 3, those that count: a version was trained on a dataset that had image 0 in train, and so on."""
    store = open_store(storage)
    shards = []
    for seed, name in SPLIT_OF.items():
        data = image(seed)
        row = {"key": f"{seed}", "image": data, "label": 0, "sha256": digest(seed), "width": 16, "height": 16}
        shards.append(write_shard(store, [row], split=name))
    dataset_log(store, "pets").append(first_version("pets", ["a", "b"], shards=shards, splitting=before).model_dump())
    provenance = provenance_of(dataset="pets/00000001", config={"dataset": {"validation": 0.0, "test": 0.0}})
    version = ModelVersion(model="pets", number=1, published_at="", files=(), classes=("a", "b"), provenance=provenance)
    asked = first_version("pets", ["a", "b"], number=2, splitting=now)
    return NeverTrainedOn(store, version, asked, split).of([digest(seed) for seed in range(4)]).tolist()


@pytest.mark.parametrize(
    ("split", "before", "now", "counts"),
    [
        ("test", GIVEN, GIVEN, [False, False, True, True]),
        ("validation", GIVEN, GIVEN, [False, True, True, True]),
        ("test", GROUPED, GROUPED, [False, False, True, True]),
        # Image 3 may be of a group of which the version knows others.
        ("test", GROUPED, GROUPED.model_copy(update={"test": 0.4}), [False, False, True, False]),
        ("test", GROUPED, None, [False, False, True, False]),
        # The content tells, by the shares that the version was trained with: all in train.
        ("test", None, GIVEN, [False] * 4),
    ],
)
def test_recorded_splits_decide_and_content_only_where_none_are(folder_storage, split, before, now, counts):
    assert counting(folder_storage, split, before=before, now=now) == counts

"""From shards in storage to batches of tensors."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.digits import digits_config, write_some_digits
from transfer.config import ImageInput
from transfer.dataset import row_groups
from transfer.dataset.batches import image_batches
from transfer.dataset.ingest import ingest
from transfer.dataset.order import WorkerSlice
from transfer.dataset.shards import read_shard
from transfer.errors import CorruptObjectError
from transfer.storage import open_store

BATCH = 16


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A dataset of several shards a split."""
    folder = tmp_path_factory.mktemp("digits")
    source = write_some_digits(folder / "images")
    dataset = {"source": str(source), "validation": 0.2, "test": 0.2, "shard_size_bytes": 30_000}
    config = digits_config(source, str(folder / "storage"), dataset=dataset)
    store = open_store(config.storage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_groups, "ROW_GROUP_SIZE_BYTES", 3000)  # So that there are several lanes.
        return store, ingest(config, store)


def batches(digits, **options):
    store, dataset = digits
    shards = dataset.shards_of("train")
    assert len(shards) > 2
    options = {
        "image_input": ImageInput(32, 32),
        "batch_size": BATCH,
        "seed": 0,
        "window_size_bytes": 70_000,
        **options,
    }
    return [{name: tensor.numpy() for name, tensor in b.items()} for b in image_batches(store, shards, **options)]


def test_an_epoch_has_every_image_once_with_its_label(digits):
    store, dataset = digits
    found = batches(digits)
    real = np.concatenate([batch["real"] for batch in found]) > 0
    images = np.concatenate([batch["images"] for batch in found])[real]
    labels = np.concatenate([batch["labels"] for batch in found])[real]
    stored = [row for shard in dataset.shards_of("train") for row in read_shard(store, shard).to_pylist()]
    decoded = [np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"), np.float32) for row in stored]
    by_content = sorted((image.tobytes(), row["label"]) for image, row in zip(decoded, stored, strict=True))
    assert sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True)) == by_content


def test_all_batches_are_full_and_only_the_last_is_filled_up(digits):
    _, dataset = digits
    found = batches(digits)
    assert all(batch["images"].shape == (BATCH, 32, 32, 3) for batch in found)
    assert all(batch["real"].all() for batch in found[:-1])
    assert found[-1]["real"].sum() == dataset.rows("train") % BATCH or found[-1]["real"].all()
    np.testing.assert_array_equal(found[-1]["positions"], np.arange(BATCH))


@pytest.mark.parametrize(
    ("workers", "replicas"),
    [pytest.param(2, 1, marks=pytest.mark.proof), (2, 2), pytest.param(4, 1, marks=pytest.mark.proof)],
)
def test_the_slices_of_all_workers_make_up_the_batches_of_one(digits, workers, replicas):
    whole = batches(digits)
    size = BATCH // workers // replicas
    parts = [batches(digits, worker=WorkerSlice(i, workers), replica_batch_size=size) for i in range(workers)]
    assert all(len(part) == len(whole) * replicas for part in parts)
    for step, expected in enumerate(whole):
        pieces = [piece for part in parts for piece in part[step * replicas : (step + 1) * replicas]]
        for name in expected:
            np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces]), expected[name])


@pytest.mark.parametrize(
    "start", [pytest.param(1, marks=pytest.mark.proof), 4, pytest.param(8, marks=pytest.mark.proof)]
)
def test_starting_in_the_middle_is_the_rest_of_the_same_epoch(digits, start):
    whole = batches(digits, epochs=[2])
    rest = batches(digits, epochs=[2], start_step=start)
    assert len(rest) == len(whole) - start
    for expected, found in zip(whole[start:], rest, strict=True):
        np.testing.assert_array_equal(found["images"], expected["images"])
        np.testing.assert_array_equal(found["labels"], expected["labels"])


def test_epochs_follow_each_other_in_one_stream(digits):
    apart = [batch for epoch in (2, 3) for batch in batches(digits, epochs=[epoch], start_step=4 if epoch == 2 else 0)]
    together = batches(digits, epochs=[2, 3], start_step=4)
    for expected, found in zip(apart, together, strict=True):
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("is_of_earlier_release", [False, True])
def test_damaged_bytes_are_never_decoded(digits, is_of_earlier_release):
    store, dataset = digits
    shard = dataset.shards_of("train")[0]
    groups = None if is_of_earlier_release else shard.row_groups.model_copy(update={"footer_sha256": "0" * 64})
    wrong = shard.model_copy(update={"sha256": "0" * 64, "row_groups": groups})
    with pytest.raises(Exception, match="SHA-256") as caught:
        list(image_batches(store, [wrong], image_input=ImageInput(32, 32), batch_size=BATCH))
    assert CorruptObjectError.__name__ in str(caught.value)

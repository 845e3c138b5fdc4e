"""What is cached: summed up, cleaned up without touching what is in use, and verified."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.digits import digits_config, ingest_some_digits
from tests.trained import train
from transfer.catalog.layout import earlier_features_content, features_content, features_description, features_entry
from transfer.dataset.ingest import ingest
from transfer.errors import CorruptObjectError, FeaturesError
from transfer.features.layout import read_entry, read_folders, schema_for
from transfer.maintenance.features import collect_garbage, summarize
from transfer.maintenance.verify import verify
from transfer.storage import Log, open_store, put_document, sha256_hex
from transfer.storage.local import LocalStore
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import open_run

ROWS = 6
SHAPE = (4,)
ONE, OTHER = "1" * 64, "12" * 32
NOW = datetime.now(UTC)


def digest(shard):
    return sha256_hex(shard.encode())


def put_dataset(store, number, shards, *, name="flowers"):
    """A dataset version with these shards, named by single letters."""
    described = [
        {"name": f"shards/{digest(s)}.parquet", "sha256": digest(s), "split": "train", "rows": ROWS, "size_bytes": 1}
        for s in shards
    ]
    document = {"name": name, "number": number, "parent": None, "classes": ["a", "b"], "shards": described}
    empty = {"counts": {}, "rejects": None, "reject_counts": {}, "source": {}}
    put_document(store, f"datasets/{name}/{number:08d}.json", document | empty)


def content_of(values, rows=ROWS, shape=SHAPE):
    sink = pa.BufferOutputStream()
    schema = schema_for(shape, "float32")
    flat = np.full(rows * int(np.prod(shape)), values, np.float32)
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(flat), int(np.prod(shape))), pa.array([0] * rows, pa.int32())]
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    return sink.getvalue().to_pybytes()


def content(shard, data=None, *, frozen_part=ONE):
    """Name of what is cached for a shard."""
    return features_content(frozen_part, digest(shard), ROWS, sha256_hex(data or content_of(ord(shard))))


def put_orphan(store, data, *, shard="a"):
    """What a writer leaves that lost the race for a shard, or was interrupted."""
    store.put(content(shard, data), data)


def put(store, frozen_part, shard, *, data=None, as_earlier=False):
    """Cache content for a shard, as a writer does, or as one of an earlier release did; returns the content's name."""
    description = {"base": "tiny", "image_size": 8, "cut": "pool", "shape": list(SHAPE), "dtype": "float32"}
    put_document(store, features_description(frozen_part), description | {"view": None})
    data = data or content_of(ord(shard))
    entry = {"sha256": sha256_hex(data), "rows": ROWS, "size_bytes": len(data)}
    name = content(shard, data, frozen_part=frozen_part)
    if as_earlier:
        name = earlier_features_content(frozen_part, entry["sha256"])
    store.put(name, data)
    put_document(store, features_entry(frozen_part, digest(shard)), entry | ({} if as_earlier else {"format": 2}))
    return name


def start_run(store, run, frozen_parts, *, number, started=NOW):
    """A run on version `number` of flowers that has claimed what it relies on."""
    put_document(
        store, f"runs/{run}/run.json", {"identity": {}, "config": {}, "dataset": {"name": "flowers", "number": number}}
    )
    Log(store, f"runs/{run}/uses").append(
        {"frozen_parts": frozen_parts, "started": started.isoformat(timespec="seconds")}
    )


def save_checkpoint(store, run, *, complete):
    Log(store, f"runs/{run}/checkpoints").append({"progress": {"complete": complete}, "weights": "", "optimizer": ""})


def cached_shards(store, frozen_part):
    """Letters of the shards of which an entry and its content are there."""
    names = {item.name for item in store.list(f"features/{frozen_part}/")}
    return {
        letter
        for letter in "abcdef"
        if {
            features_entry(frozen_part, digest(letter)),
            content(letter, frozen_part=frozen_part),
        }
        <= names
    }


def objects(store):
    return {item.name for item in store.list("features/")}


def fill(store):
    """Shards a and b are live, c is not any more; a second frozen part has shard a; one content has no entry."""
    put_dataset(store, 1, "abc")
    put_dataset(store, 2, "ab")
    for shard in "abc":
        put(store, ONE, shard)
    put(store, OTHER, "a")
    put_orphan(store, content_of(-1))
    return store


@pytest.fixture
def cache(folder_storage):
    """A folder with something of everything."""
    return fill(open_store(folder_storage))


@pytest.fixture
def each_cache(store):
    """A folder, then a bucket, with something of everything."""
    return fill(store)


def test_a_summary_says_what_is_cached_reachable_and_relied_on(each_cache):
    start_run(each_cache, "running", [ONE], number=1)
    start_run(each_cache, "done", [ONE], number=1)
    save_checkpoint(each_cache, "done", complete=True)
    one, other = summarize(each_cache)
    assert (one.digest, other.digest) == (ONE, OTHER)
    assert one.description["cut"] == "pool"
    assert (one.cached.shards, one.cached.images, one.orphans) == (3, 3 * ROWS, 1)
    assert one.cached.size_bytes == sum(item.size_bytes for item in each_cache.list(f"features/{ONE}/"))
    names = [features_entry(ONE, digest(s)) for s in "ab"]
    names += [content(s) for s in "ab"]
    assert (one.reachable.shards, one.reachable.images) == (2, 2 * ROWS)
    assert one.reachable.size_bytes == sum(map(each_cache.size, names))
    assert [run.id for run in one.runs] == ["running"]
    assert not other.runs


def test_what_no_live_dataset_needs_goes_only_when_asked_to(each_cache):
    before = objects(each_cache)
    would = collect_garbage(each_cache)
    assert objects(each_cache) == before
    done = collect_garbage(each_cache, remove=True)
    assert done == would
    (cleanup,) = done.cleanups
    assert before - objects(each_cache) == {name for step in cleanup.steps() for name in step}
    assert (cleanup.shards, len(cleanup.contents), len(cleanup.orphans)) == ((digest("c"),), 1, 1)
    assert cached_shards(each_cache, ONE) == {"a", "b"}
    assert cached_shards(each_cache, OTHER) == {"a"}
    assert collect_garbage(each_cache).cleanups == ()
    assert verify(each_cache).damaged == ()


def test_the_newest_version_of_every_dataset_is_live(cache):
    put_dataset(cache, 1, "c", name="other")
    collect_garbage(cache, remove=True)
    assert cached_shards(cache, ONE) == {"a", "b", "c"}


def test_content_of_an_earlier_release_that_a_live_shard_shares_stays(cache):
    # The same pixels under other keys were another image shard with the same content.
    put_dataset(cache, 3, "abd")
    name = put(cache, ONE, "d", as_earlier=True)
    put(cache, ONE, "e", data=content_of(ord("d")), as_earlier=True)
    collect_garbage(cache, remove=True)
    assert cached_shards(cache, ONE) == {"a", "b"}
    assert cache.exists(features_entry(ONE, digest("d")))
    assert not cache.exists(features_entry(ONE, digest("e")))
    assert cache.exists(name)
    assert verify(cache).damaged == ()


def test_a_listing_says_what_the_entries_say(cache, monkeypatch):
    put(cache, ONE, "d", as_earlier=True)
    summed, planned = summarize(cache), collect_garbage(cache)
    read = []
    monkeypatch.setattr(
        "transfer.features.layout.read_entry",
        lambda store, frozen_part, shard: (read.append(shard), read_entry(store, frozen_part, shard))[1],
    )
    assert (summarize(cache), collect_garbage(cache)) == (summed, planned)
    # One has two contents, of which only the entry knows which counts; one is of an earlier release.
    assert {*read} == {digest("a"), digest("d")}
    folders = [*read_folders(cache)], [*read_folders(cache, reads_entries=True)]
    assert folders[0] == folders[1]


def test_a_named_prefix_goes_as_a_whole_with_its_description(each_cache):
    collect_garbage(each_cache, named=[OTHER[:2]], remove=True)
    assert cached_shards(each_cache, ONE) == {"a", "b"}
    assert not list(each_cache.list(f"features/{OTHER}/"))


@pytest.mark.parametrize(("name", "said"), [("1", "2 frozen parts"), ("7", "No frozen part"), ("", "No frozen part")])
def test_a_name_that_fits_no_prefix_or_several_removes_nothing(cache, name, said):
    before = objects(cache)
    with pytest.raises(FeaturesError, match=said):
        collect_garbage(cache, named=[ONE, name], remove=True)
    assert objects(cache) == before


def test_what_an_unfinished_run_relies_on_is_left_alone(each_cache):
    put(each_cache, ONE, "d")
    start_run(each_cache, "running", [ONE], number=1)
    save_checkpoint(each_cache, "running", complete=False)
    orphans = summarize(each_cache)[0].orphans
    (cleanup,) = collect_garbage(each_cache, remove=True).cleanups
    assert cleanup.shards == (digest("d"),)
    (left,) = cleanup.left_alone
    assert (left.run, left.shards, left.orphans) == ("running", 1, 1)
    assert cached_shards(each_cache, ONE) == {"a", "b", "c"}
    assert summarize(each_cache)[0].orphans == orphans

    save_checkpoint(each_cache, "running", complete=True)
    collect_garbage(each_cache, remove=True)
    assert cached_shards(each_cache, ONE) == {"a", "b"}
    assert summarize(each_cache)[0].orphans == 0


def test_a_name_does_not_take_from_a_run_what_it_relies_on(cache):
    start_run(cache, "running", [ONE], number=2)
    (cleanup, other) = collect_garbage(cache, named=[ONE, OTHER], remove=True).cleanups
    assert [(left.run, left.shards, left.orphans) for left in cleanup.left_alone] == [("running", 2, 1)]
    assert cached_shards(cache, ONE) == {"a", "b"}
    assert cache.exists(features_description(ONE))
    assert other.whole
    assert not list(cache.list(f"features/{OTHER}/"))


def test_an_earlier_cut_from_which_a_run_may_start_is_left_alone_for_it(cache):
    start_run(cache, "running", [OTHER], number=1)
    (cleanup,) = collect_garbage(cache, remove=True).cleanups
    assert [(left.run, left.shards, left.orphans) for left in cleanup.left_alone] == [("running", 1, 0)]
    assert cached_shards(cache, ONE) == {"a", "b", "c"}
    assert summarize(cache)[0].orphans == 0


def test_the_description_stays_for_a_run_that_is_about_to_write(cache):
    start_run(cache, "running", [OTHER], number=1)
    cache.remove(features_entry(OTHER, digest("a")))
    cache.remove(content("a", frozen_part=OTHER))
    collect_garbage(cache, remove=True)
    assert cache.exists(features_description(OTHER))


def test_a_run_that_was_abandoned_protects_nothing(cache):
    start_run(cache, "old", [ONE], number=1, started=NOW - timedelta(days=10))
    assert collect_garbage(cache).cleanups[0].shards == ()
    done = collect_garbage(cache, remove=True, abandoned_after=timedelta(days=9))
    assert [run.id for run in done.abandoned] == ["old"]
    assert cached_shards(cache, ONE) == {"a", "b"}


def test_the_last_attempt_of_a_run_decides_whether_it_was_abandoned(cache):
    for days in (40, 1):
        start_run(cache, "resumed", [ONE], number=1, started=NOW - timedelta(days=days))
    collect_garbage(cache, remove=True)
    assert cached_shards(cache, ONE) == {"a", "b", "c"}


def damage(store, name, data=None):
    """Change an object behind the store's back, as a disk or another program may."""
    data = data if data is not None else store.read(name)[:-1] + b"?"
    if isinstance(store, LocalStore):
        path = Path(store.uri, name)
        path.chmod(0o644)
        path.write_bytes(data)
        return
    client, key = store._bucket.client, store._bucket.key(name)
    there = client.head_object(Bucket=store._bucket.name, Key=key)
    client.put_object(Bucket=store._bucket.name, Key=key, Body=data, Metadata=there["Metadata"])


@pytest.mark.parametrize("name", ["runs/running/run.json", "runs/running/uses/00000001.json"])
def test_nothing_goes_while_it_is_not_known_what_a_run_needs(cache, name):
    start_run(cache, "running", [ONE], number=1)
    damage(cache, name)
    before = objects(cache)
    with pytest.raises(CorruptObjectError, match=name):
        collect_garbage(cache, remove=True)
    assert objects(cache) == before


def test_a_run_whose_last_checkpoint_is_damaged_is_not_finished(cache):
    start_run(cache, "running", [ONE], number=1)
    save_checkpoint(cache, "running", complete=True)
    damage(cache, "runs/running/checkpoints/00000001.json")
    collect_garbage(cache, remove=True)
    assert cached_shards(cache, ONE) == {"a", "b", "c"}


def test_contents_stay_while_an_entry_that_may_name_them_does_not_read(cache):
    damage(cache, features_entry(ONE, digest("a")))
    (cleanup,) = collect_garbage(cache, remove=True).cleanups
    assert cleanup.shards == (digest("c"),)
    (left,) = cleanup.left_alone
    assert "entries that do not read: 1" in left.why
    assert (left.run, left.orphans) == (None, 2)
    assert cache.exists(content("a"))


class Disturbed(LocalStore):
    """A folder in which something happens right after the runs were listed for the second time."""

    def __init__(self, folder, event):
        super().__init__(folder)
        self.event = event
        self.looks = 0
        self.removed = []

    def list(self, prefix=""):
        yield from super().list(prefix)
        if prefix == "runs/":
            self.looks += 1
            if self.looks == 1:
                self.event(self, "between the looks")
            if self.looks == 2:
                self.event(self, "after the looks")

    def remove(self, name):
        self.removed.append(name)
        super().remove(name)


@pytest.fixture
def disturbed(folder_storage):
    def make(when, event):
        store = Disturbed(Path(folder_storage.uri), lambda store, now: event(store) if now == when else None)
        put_dataset(store, 1, "ab")
        put_dataset(store, 2, "a")
        for shard in "ab":
            put(store, ONE, shard)
        put_orphan(store, content_of(-1))
        return store

    return make


def test_a_run_that_starts_meanwhile_keeps_what_it_relies_on(disturbed):
    store = disturbed("between the looks", lambda store: start_run(store, "new", [ONE], number=1))
    before = objects(store)
    (cleanup,) = collect_garbage(store, remove=True).cleanups
    assert objects(store) == before
    assert [left.run for left in cleanup.left_alone] == ["new"]


def test_content_that_is_written_meanwhile_is_not_an_orphan(disturbed):
    def write(store):
        start_run(store, "new", [ONE], number=2)
        put_orphan(store, content_of(-2))

    store = disturbed("after the looks", write)
    collect_garbage(store, remove=True)
    assert store.exists(content("a", content_of(-2)))
    assert not store.exists(content("a", content_of(-1)))


def test_entries_go_before_contents_and_the_description_last(disturbed):
    store = disturbed("never", lambda _: None)
    collect_garbage(store, named=[ONE], remove=True)
    kinds = [
        "entry" if name.endswith((f"{digest('a')}.json", f"{digest('b')}.json")) else Path(name).suffix
        for name in store.removed
    ]
    assert kinds == ["entry", "entry", ".arrow", ".arrow", ".arrow", ".json"]


def kinds_of_damage(store):
    """Each way in which something cached can be damaged: what is done, and what `verify` should say of which object."""
    a, b, c = map(content, "abc")
    return {
        "flipped bit": (lambda: damage(store, a), a, "SHA-256"),
        "empty": (lambda: damage(store, b, b""), b, "SHA-256"),
        "content gone": (lambda: store.remove(c), c, "not there"),
        "entry": (
            lambda: damage(store, features_entry(ONE, digest("b"))),
            features_entry(ONE, digest("b")),
            "read as an entry",
        ),
        "description": (
            lambda: damage(store, features_description(ONE)),
            features_description(ONE),
            "SHA-256",
        ),
        "orphan": (
            lambda: damage(store, content("a", content_of(-1))),
            content("a", content_of(-1)),
            "SHA-256",
        ),
        "rows": (
            lambda: put(store, ONE, "e", data=content_of(1, rows=5)),
            content("e", content_of(1, rows=5)),
            "5 rows, expected 6",
        ),
        "shape": (
            lambda: put(store, ONE, "e", data=content_of(1, shape=(2, 2))),
            content("e", content_of(1, shape=(2, 2))),
            "shape",
        ),
        "format": (
            lambda: put(store, ONE, "e", data=b"not Arrow"),
            content("e", b"not Arrow"),
            "Arrow",
        ),
    }


@pytest.mark.parametrize(
    "kind", ["flipped bit", "empty", "content gone", "entry", "description", "orphan", "rows", "shape", "format"]
)
def test_damage_is_found_and_only_what_is_damaged_is_removed(cache, kind):
    do, name, said = kinds_of_damage(cache)[kind]
    do()
    before = objects(cache)
    (found,) = verify(cache).damaged
    assert found.name == name
    assert said in found.found
    assert objects(cache) == before

    assert verify(cache, remove=True).damaged == (found,)
    gone = before - objects(cache)
    assert gone - {name} <= {features_entry(ONE, digest(shard)) for shard in "abce"}
    assert len(gone) <= 2
    assert not cache.exists(name)
    assert verify(cache).damaged == ()


def test_damaged_content_takes_all_entries_that_name_it(each_cache):
    for shard in "de":
        name = put(each_cache, ONE, shard, data=content_of(ord("d")), as_earlier=True)
    damage(each_cache, name)
    verify(each_cache, remove=True)
    assert not each_cache.exists(features_entry(ONE, digest("d")))
    assert not each_cache.exists(features_entry(ONE, digest("e")))


def test_what_a_job_discards_while_it_is_verified_is_not_damaged(folder_storage):
    class Discarding(LocalStore):
        def size(self, name):
            self.remove(features_entry(ONE, digest("a")))
            self.remove(name)
            return super().size(name)

    store = Discarding(Path(folder_storage.uri))
    put(store, ONE, "a")
    assert verify(store).damaged == ()


def test_a_copy_on_this_machine_does_not_hide_that_the_bucket_is_damaged(s3_storage):
    store = open_store(s3_storage)
    name = put(store, ONE, "a")
    sha256 = sha256_hex(content_of(ord("a")))
    store.open_verified(name, sha256)
    damage(store, name)
    assert store.open_verified(name, sha256).read() == content_of(ord("a"))
    assert [found.name for found in verify(store).damaged] == [name]


class SimulatedError(Exception):
    pass


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def new_run(digits, tmp_path):
    """Starts runs on the first dataset version, in a copy of the storage that holds it."""
    source, dataset = digits
    shutil.copytree(source.parent / "storage", tmp_path / "storage")
    shutil.copytree(source, tmp_path / "images")

    def make(run_id):
        config = digits_config(
            tmp_path / "images",
            str(tmp_path / "storage"),
            phases=[{"unfreeze": depth, "epochs": 2, "learning_rate": 1e-3} for depth in (0, 1)],
            features={"cache": "always", "engine": "tensorflow"},
        )
        return open_run(open_store(config.storage), config, dataset, run_id=run_id), dataset

    return make


def trained_weights(run, dataset, **options):
    train(run, dataset, **options)
    return Checkpoints(run).complete().weights


@pytest.mark.proof
def test_an_interrupted_run_goes_on_with_what_gc_left_alone_for_it(new_run, tmp_path):
    def fail(row):
        if row.epoch == 1:
            raise SimulatedError

    run, dataset = new_run("interrupted")
    with pytest.raises(SimulatedError):
        trained_weights(run, dataset, on_epoch=fail)
    for folder in (tmp_path / "images").iterdir():
        for path in sorted(folder.iterdir())[:5]:
            path.unlink()
    newer = ingest(run.config, run.store)
    dead = {shard.sha256 for shard in dataset.shards} - {shard.sha256 for shard in newer.shards}
    assert dead

    before = objects(run.store)
    cleanups = collect_garbage(run.store, named=[each.digest for each in summarize(run.store)], remove=True).cleanups
    assert objects(run.store) == before
    assert {left.run for cleanup in cleanups for left in cleanup.left_alone} == {"interrupted"}

    shutil.rmtree(tmp_path / "storage" / "shards")
    trained_weights(run, dataset, start=Checkpoints(run).newest())
    collect_garbage(run.store, remove=True)
    assert not {name for name in objects(run.store) if Path(name).stem in dead}


@pytest.mark.proof
def test_what_was_removed_is_computed_again_with_the_same_result(new_run):
    first, dataset = new_run("first")
    expected = trained_weights(first, dataset)
    collect_garbage(first.store, named=[each.digest for each in summarize(first.store)], remove=True)
    assert not objects(first.store)
    second, dataset = new_run("second")
    for weights, same in zip(trained_weights(second, dataset), expected, strict=True):
        np.testing.assert_allclose(weights, same, atol=1e-5 * np.abs(same).max())
    assert objects(second.store)

"""The same images give the same dataset, however they are packed."""

import io
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.sourcing import config_of, image
from transfer.dataset.ingest import ingest
from transfer.storage import open_store

NAMES = st.text(alphabet="aZ1 .é_%\N{CJK UNIFIED IDEOGRAPH-732B}-", min_size=1, max_size=6).filter(
    lambda name: not name.startswith(".") and name == name.strip()
)
CLASSES = ("cat", "käse")
# Under its class, each image has a name of its own; its content is that of the seed.
TREES = st.dictionaries(NAMES, st.sampled_from(CLASSES), min_size=6, max_size=9).map(
    lambda tree: (
        {f"{label}/{name}.png": image(seed) for seed, (name, label) in enumerate(tree.items())}
        | {f"{label}/other{number}.png": image(100 + number) for number, label in enumerate(CLASSES * 2)}
    )
)


SPLITS = {"train": 4, "val": 2, "test": 1}


def label_of(name):
    return name.split("/")[-2]


def columns_of(files):
    """What a table says of files, besides where they are."""
    splits = [name.split("/")[0] for name in files if name.count("/") == 2]
    return {"split": splits} if splits else {}


def folder(files, place, _):
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def zipped(files, place, _):
    with zipfile.ZipFile(place / "photos.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"photos/{name}", data)
        archive.writestr("LICENSE", b"free")
    return place / "photos.zip"


def tarred(files, place, _):
    with tarfile.open(place / "photos.tar.gz", "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return place / "photos.tar.gz"


def prefix(files, place, s3_storage):
    uri = f"{s3_storage.uri}/{place.parent.name}/{place.name}"
    store = open_store(s3_storage.model_copy(update={"uri": uri}))
    for name, data in files.items():
        store.put(name, data)
    return uri


def table(files, place, _):
    folder(files, place, _)
    columns = {"path": list(files), "label": list(map(label_of, files))}
    pa.csv.write_csv(pa.table(columns | columns_of(files)), place / "table.csv")
    return place / "table.csv"


def embedded(files, place, _):
    names = list(files)
    labels = pa.array([CLASSES.index(label_of(name)) for name in names], pa.int64())
    images = pa.array([{"bytes": data, "path": name} for name, data in files.items()])
    features = '{"info": {"features": {"label": {"names": ["cat", "käse"], "_type": "ClassLabel"}}}}'
    rows = pa.table({"image": images, "label": labels, **columns_of(files)}).replace_schema_metadata(
        {"huggingface": features}
    )
    for part in range(2):
        pq.write_table(rows.slice(part * 4, 4 if part == 0 else None), place / f"{part}.parquet")
    return place


PACKED = {make.__name__: make for make in (folder, zipped, tarred, prefix, table, embedded)}


def packed(files, here, s3_storage, *, of_tables=None, **options):
    """Classes, names of the shards and counts of the datasets that come of files, by how these are packed."""
    found = {}
    for name, make in PACKED.items():
        (here / name).mkdir()
        storage = s3_storage.model_copy(update={"uri": str(here / f"{name}-storage")})
        source = make(files, here / name, s3_storage)
        more = of_tables or {} if make in {table, embedded} else {}
        dataset = ingest(config_of(source, storage, **options, **more), open_store(storage))
        found[name] = (dataset.classes, [shard.name for shard in dataset.shards], dataset.counts)
    return found


@settings(
    max_examples=2,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(files=TREES)
def test_images_give_the_same_shards_however_they_are_packed(files, s3_storage, tmp_path_factory):
    found = packed(files, tmp_path_factory.mktemp("packed"), s3_storage, validation=0.0)
    assert all(each == found["folder"] for each in found.values()), found


def test_images_in_given_splits_do_so_too(s3_storage, tmp_path):
    places = [(split, label, number) for split, count in SPLITS.items() for label in CLASSES for number in range(count)]
    files = {f"{split}/{label}/{number}.png": image(seed) for seed, (split, label, number) in enumerate(places)}
    found = packed(files, tmp_path, s3_storage, of_tables={"split_column": "split"})
    counts = {split: dict.fromkeys(CLASSES, count) for split, count in SPLITS.items()}
    counts["validation"] = counts.pop("val")
    assert found["folder"][2] == counts
    assert all(each == found["folder"] for each in found.values()), found

"""A fuzzer that is guided by what it covers: `python -m tests.proof.fuzzing TARGET FOLDER SECONDS`.

libFuzzer through atheris. It ends with exit code 0 after so many seconds, and with another one at the first input that
lets anything but a TransferError out, takes longer than ten seconds, or more memory than 4 GiB; that input is then in
FOLDER. The last lines of stderr count what was run.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import atheris

LONGEST_S = 10
MOST_MEMORY_MIB = 4096
MAX_PIXELS = 10_000
IN_MEMORY = "/dev/shm"  # noqa: S108 - atheris is for Linux only, and a disk would be the slowest part.

# What the fuzzer sees into; its own code and what it only calls costs time and tells nothing.
INSTRUMENTED = [
    "yaml",
    "PIL",
    "transfer.config",
    "transfer.dataset",
    "transfer.registry",
    "transfer.storage",
    "transfer.training",
]

with atheris.instrument_imports(include=INSTRUMENTED):
    import PIL.Image
    import yaml

    from tests.sourcing import read_ledger
    from transfer.config.loading import load_config, parse_config
    from transfer.config.reference import render
    from transfer.dataset.check import AcceptedImage, check_image
    from transfer.dataset.manifest import load_dataset
    from transfer.dataset.refusals import RejectedImage
    from transfer.dataset.shards import read_columns, read_shard
    from transfer.errors import TransferError
    from transfer.registry.versions import (
        current_promotion,
        download_version,
        list_versions,
        load_version,
        published_version,
    )
    from transfer.storage import put_document, read_document
    from transfer.storage.documents import decode_document, encode_document
    from transfer.storage.local import LocalStore
    from transfer.training.run import load_run

    PIL.Image.init()

FULL = (Path(__file__).parents[1] / "unit/config/golden/full.yaml").read_text()
# Texts and numbers that have been trouble before, for the places of a document.
HOSTILE = ["", "../up", "/etc/x", "a/../b", "\n", "\ud800", "x" * 5000, -1, 0, 2**63, 1e308, True, None, [], {}, [[]]]


def fuzz_config(data: bytes) -> None:
    """A configuration file, and behind a zero byte an override."""
    text, _, override = data.partition(b"\0")
    with tempfile.NamedTemporaryFile(dir=IN_MEMORY) as file:
        file.write(text)
        file.flush()
        config = load_config(Path(file.name), [override.decode(errors="surrogateescape")] if override else [])
    # What is taken can be stored, shown and read again.
    encode_document(config.model_dump(mode="json"))
    assert parse_config(yaml.safe_load(render(config))) == config


def fuzz_document(data: bytes) -> None:
    """Bytes under a document's name, and a document of the right digest with anything in it, in each place."""
    if data[:1] == b"{":
        read_everything(decode_document(data, name="fuzzed", uri="here"))
        return
    edits = atheris.FuzzedDataProvider(data)
    document = json.loads(json.dumps(DOCUMENTS[edits.ConsumeIntInRange(0, len(DOCUMENTS) - 1)]))
    for _ in range(edits.ConsumeIntInRange(0, 3)):
        edit(document, edits)
    read_everything(document)


def edit(document: Any, edits: atheris.FuzzedDataProvider) -> None:
    """Change one place of a document."""
    while True:
        places = list(document) if isinstance(document, dict) else list(range(len(document)))
        if not places:
            return
        place = places[edits.ConsumeIntInRange(0, len(places) - 1)]
        if not isinstance(document[place], dict | list) or edits.ConsumeBool():
            break
        document = document[place]
    kind = edits.ConsumeIntInRange(0, 3)
    if kind == 0:
        del document[place]
    elif kind == 1:
        document[place] = HOSTILE[edits.ConsumeIntInRange(0, len(HOSTILE) - 1)]
    elif kind == 2:
        document[place] = edits.ConsumeUnicode(20)
    else:
        document[place] = edits.ConsumeInt(9)


def read_everything(document: dict[str, Any]) -> None:
    """The document in each place of a store, and all who read such a place."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        store = LocalStore(Path(folder, "storage"))
        try:
            encode_document(document)
        except ValueError:
            return  # JSON does not hold it, so storage does not.
        for place in ("datasets/a", "models/a/versions", "models/a/promotions", "models/a/published/r"):
            put_document(store, f"{place}/00000001.json", document)
        put_document(store, "runs/r/run.json", document)
        inside = set(Path(folder).iterdir())
        for ask in READERS:
            refused_or_taken(ask, store)
        put_document(store, "models/a/retention/00000001.json", document)
        refused_or_taken(lambda store: list(list_versions(store, "a")), store)
        assert set(Path(folder).iterdir()) <= inside | {Path(folder, "to")}, "something was written elsewhere"


def refused_or_taken(ask: Callable[[LocalStore], Any], store: LocalStore) -> None:
    try:
        ask(store)
    except TransferError as error:
        must_say_why(error)


def must_say_why(error: TransferError) -> None:
    assert error.message


def read_shards(store: LocalStore) -> None:
    dataset = load_dataset(store, "a")
    assert dataset.reference
    for shard in dataset.shards:
        assert dataset.rows(shard.split) == sum(other.rows for other in dataset.shards_of(shard.split))
        refused_or_taken(lambda store, shard=shard: read_shard(store, shard), store)
        refused_or_taken(lambda store, shard=shard: read_columns(store, shard, ["label"]), store)
    if dataset.rejects:
        read_ledger(store, dataset.rejects)


def read_version(store: LocalStore) -> None:
    version = load_version(store, "a", 1)
    download_version(store, version, Path(store.uri).parent / "to" / "model")


READERS = [
    lambda store: read_document(store, "datasets/a/00000001.json"),
    read_shards,
    read_version,
    lambda store: current_promotion(store, "a"),
    lambda store: load_version(store, "a"),
    lambda store: published_version(store, "a", "r"),
    lambda store: load_run(store, "r", CONFIG),
]


def fuzz_image(data: bytes) -> None:
    """An image file: its header above all, since the rest is for decoders in C."""
    for transcode in (False, True):
        found = check_image(
            data, key="image.png", max_pixels=MAX_PIXELS, max_file_size_bytes=100_000, transcode=transcode
        )
        if isinstance(found, AcceptedImage):
            assert 0 < found.width * found.height <= MAX_PIXELS
        else:
            assert isinstance(found, RejectedImage)
            found.detail.encode()


CONFIG = parse_config({"name": "a", "storage": "/x", "dataset": {"source": "digits"}, "base": {"model": "VGG16"}})
SHARD = {"name": "shards/ab.parquet", "sha256": "ab" * 32, "split": "train", "rows": 3, "size_bytes": 9}
FILE = {"name": "saved_model.pb", "size_bytes": 3, "sha256": "ab" * 32}
DATASET = {
    "format": 1,
    "name": "a",
    "number": 1,
    "parent": None,
    "label_kind": "class",
    "classes": ["x", "y"],
    "shards": [SHARD, SHARD],
    "counts": {"train": {"x": 3, "y": 3}},
    "rejects": "rejects/ab.parquet",
    "reject_counts": {"empty": 1},
    "source": {"kind": "folder", "uri": "/x"},
}
VERSION = {
    "model": "a",
    "number": 1,
    "published_at": "",
    "files": [FILE, FILE],
    "classes": ["x", "y"],
    "provenance": {
        "run": "r",
        "dataset": "a/00000001",
        "base": {"model": "m", "sha256": "ab"},
        "weights": {"checkpoint": 1, "sha256": "ab"},
        "report": 1,
        "metrics": {"accuracy": 0.9, "loss": 0.5, "split": "test"},
        "config": {},
    },
}
PROMOTION = {"version": 1, "since": "", "reason": "", "replaces": None, "evidence": {"night": 1}}
RETENTION = {
    "pins": [{"version": 1, "since": "", "reason": ""}],
    "announced": [{"version": 1, "promotion": 2}],
    "removed": [2],
}
DOCUMENTS: list[dict[str, Any]] = [
    DATASET,
    VERSION,
    PROMOTION,
    {
        "identity": {"head": {}},
        "config": CONFIG.model_dump(mode="json"),
        "dataset": {"name": "a", "number": 1},
        "versions": {"keras": "3"},
    },
    {"action": "pin", "versions": [1], "at": "", "reason": "", "then": RETENTION},
]


def seeds_of_config() -> Iterable[bytes]:
    """Small ones, for speed: what must be there, and one section each."""
    minimal = b"name: n\nstorage: s3://b/p\ndataset: {source: digits}\nbase: {model: VGG16}\n"
    yield minimal + b"\0phases.0.epochs=3"
    for section, value in yaml.safe_load(FULL).items():
        yield minimal + yaml.safe_dump({section: value}, default_flow_style=True).encode()


def seeds_of_document() -> Iterable[bytes]:
    for number, document in enumerate(DOCUMENTS):
        yield encode_document(document)
        yield bytes(range(number, 40 + number))


def seeds_of_image() -> Iterable[bytes]:
    from tests.images import animate, encode, gif, insert_chunk, picture, png, tiff_block, with_alpha

    small = picture(12, 8)
    for format_name in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF", "QOI"):
        yield encode(small, format_name)
    yield animate([small, small.rotate(180)], "GIF")
    yield animate([small, small.rotate(180)], "WEBP")
    yield encode(with_alpha(small), "PNG")
    yield encode(small, "JPEG", exif=b"Exif\0\0" + tiff_block(6))
    yield gif((8, 8), (0, 0, 4, 4))
    yield png(3, 1, 16, 0, b"\0\x12\xff\x80\x00\xff\x7f")
    yield insert_chunk(encode(small, "PNG"), b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')


def words_of_config() -> Iterable[bytes]:
    """Keys, and what YAML knows beyond them."""
    yield from (key.encode() + b": " for key in re.findall(r"^ *(?:- )?(\w+):", FULL, re.MULTILINE))
    yield from (b"!!bool ", b"!!float ", b"!!int ", b"!!timestamp ", b"!!binary ", b"!!set ", b"!!omap ", b"<<: ")
    yield from (b"&a ", b"*a ", b"? ", b"0x", b"2001-01-01", b".nan", b"-.inf", b":59", b"null", b"true", b"1e400")


def words_of_document() -> Iterable[bytes]:
    yield from (b"Infinity", b"NaN", b"\\ud800", b"null", b"[[[[[[[[", b"1e999", b"99999999999999999999")


def words_of_image() -> Iterable[bytes]:
    yield from (b"IHDR", b"IDAT", b"tRNS", b"PLTE", b"acTL", b"iTXt", b"VP8X", b"VP8L", b"ANIM", b"ftyp", b"avif")
    yield from (b"Exif\0\0II*\0", b"Exif\0\0MM\0*", b"NETSCAPE2.0", b"\xff\xda", b"\xff\xc0", b"Adobe", b"ICC_PROFILE")


@dataclass(frozen=True)
class Target:
    """What is fuzzed, the inputs to begin with, what may be in others, and their largest size."""

    one_input: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    words: Callable[[], Iterable[bytes]]
    max_size_bytes: int


TARGETS = {
    "config": Target(fuzz_config, seeds_of_config, words_of_config, 600),
    "document": Target(fuzz_document, seeds_of_document, words_of_document, 2000),
    "image": Target(fuzz_image, seeds_of_image, words_of_image, 4000),
}


def main(name: str, folder: Path, seconds: str) -> None:
    target = TARGETS[name]
    for place in ("seeds", "found"):
        (folder / place).mkdir(parents=True)
    for number, seed in enumerate(target.seeds()):
        (folder / "seeds" / str(number)).write_bytes(seed)
    if name == "image":
        fuzz_image((folder / "seeds/0").read_bytes())  # It loads TensorFlow, which is no part of any input's time.

    def one_input(data: bytes) -> None:
        try:
            target.one_input(data)
        except TransferError as error:
            must_say_why(error)

    limits = [f"-max_total_time={seconds}", f"-timeout={LONGEST_S}", f"-rss_limit_mb={MOST_MEMORY_MIB}"]
    (folder / "words").write_text("".join(f'"{word_in_dictionary(word)}"\n' for word in target.words()))
    options = [*limits, f"-max_len={target.max_size_bytes}", "-print_final_stats=1", f"-artifact_prefix={folder}/"]
    options.append(f"-dict={folder}/words")
    # New inputs go to the first folder.
    atheris.Setup([sys.argv[0], *options, str(folder / "found"), str(folder / "seeds")], one_input)
    atheris.Fuzz()


def word_in_dictionary(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])

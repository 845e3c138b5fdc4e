from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer.errors import CorruptObjectError
from transfer.storage import open_store, put_document, read_document
from transfer.storage.documents import decode_document, encode_document

DOCUMENT = {
    "name": "blumen ✿",
    "classes": ["daisy", "rose"],
    "counts": {"train": {"daisy": 3}},
    "share": 0.15,
    "no": None,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def decode(data):
    return decode_document(data, name="document", uri="memory")


def test_a_document_is_read_as_it_was_put(store):
    assert put_document(store, "document.json", DOCUMENT) is True
    assert put_document(store, "document.json", dict(reversed(DOCUMENT.items()))) is False
    assert read_document(store, "document.json") == DOCUMENT


def test_a_document_is_readable_json_with_its_digest(store):
    put_document(store, "document.json", DOCUMENT)
    data = store.read("document.json")
    assert json.loads(data)["document"] == DOCUMENT
    assert set(json.loads(data)) == {"document", "sha256"}
    assert data.endswith(b"}\n")
    assert "✿".encode() in data


def test_every_flipped_bit_and_missing_or_added_byte_is_noticed():
    data = encode_document(DOCUMENT)
    damaged = [data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for at in range(len(data)) for bit in range(8)]
    damaged += [data[:at] for at in range(len(data))]
    damaged += [data[:at] + b" " + data[at:] for at in range(len(data) + 1)]
    for wrong in damaged:
        with pytest.raises(CorruptObjectError, match="document"):
            decode(wrong)


def test_a_document_damaged_on_the_disk_is_refused(folder_storage):
    store = open_store(folder_storage)
    put_document(store, "document.json", DOCUMENT)
    path = store.folder / "document.json"
    path.write_bytes(path.read_bytes().replace(b"0.15", b"0.25"))
    with pytest.raises(CorruptObjectError, match=r"document\.json"):
        read_document(store, "document.json")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"null", b'{"document": NaN, "sha256": ""}', b"[" * 100_000, b"\xff"]
)
def test_what_is_no_document_at_all_is_refused(data):
    with pytest.raises(CorruptObjectError):
        decode(data)


def test_numbers_that_json_does_not_have_are_refused():
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            encode_document({"loss": number})


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON))
def test_any_document_survives_and_has_one_encoding(document):
    data = encode_document(document)
    assert decode(data) == document
    assert encode_document(decode(data)) == data


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON))
def test_a_document_and_its_digest_are_indented_as_json_does_it(document):
    data = encode_document(document)
    assert data.decode() == json.dumps(json.loads(data), sort_keys=True, ensure_ascii=False, indent=1) + "\n"


def test_keys_that_become_strings_still_have_one_encoding():
    data = encode_document({"counts": {10: "ten", 9: "nine"}})
    assert decode(data) == {"counts": {"10": "ten", "9": "nine"}}

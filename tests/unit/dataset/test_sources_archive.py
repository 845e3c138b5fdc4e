"""Archives: unpacked without trusting them, from here, a bucket and the web."""

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import sys
import tarfile
import threading
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.sourcing import bytes_of, everything_of, image
from transfer.config import DatasetConfig
from transfer.dataset.sources import archive as archive_module
from transfer.dataset.sources import open_source
from transfer.dataset.sources.archive import check_archive
from transfer.errors import DatasetError
from transfer.storage import open_store

MEMBERS = {"cat/1.png": image(1), "dog/deep/2.png": image(2)}


def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return buffer.getvalue()


def zip_with_names(path, names, *, system):
    """An archive whose names are these bytes, without the flag for UTF-8, as a program of that system writes it."""
    with zipfile.ZipFile(path, "w") as opened:
        for number, name in enumerate(names):
            member = zipfile.ZipInfo(f"{number}".rjust(len(name), "Q"))
            member.create_system = system
            opened.writestr(member, b"%d" % number)
    data = path.read_bytes()
    for number, name in enumerate(names):
        data = data.replace(f"{number}".rjust(len(name), "Q").encode(), name)
    path.write_bytes(data)
    return path


def tar_of(members):
    """Contents are bytes, or a changed TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as opened:
        for name, content in members.items():
            member = tarfile.TarInfo(name) if isinstance(content, bytes) else content
            member.size = len(content) if isinstance(content, bytes) else member.size
            opened.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def xz_of(members):
    return lzma.compress(gzip.decompress(tar_of(members)))


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


PACKERS = [(".zip", zip_of), (".tar.gz", tar_of), (".TGZ", tar_of), (".tar.xz", xz_of)]


@pytest.fixture(params=PACKERS, ids=[suffix for suffix, _ in PACKERS])
def pack(request, tmp_path):
    suffix, function = request.param

    def write(members):
        path = tmp_path / f"archive{suffix}"
        path.write_bytes(function(members))
        return path

    return write


def refusal(path, storage, **options):
    with pytest.raises(DatasetError, match="is refused") as caught:
        everything_of(path, storage, **options)
    return caught.value.message


def test_class_folders_in_an_archive_are_a_source(pack, folder_storage):
    assert bytes_of(pack(MEMBERS), folder_storage) == MEMBERS


def test_a_folder_around_the_class_folders_is_no_class(pack, folder_storage):
    members = {f"photos/v2/{name}": content for name, content in MEMBERS.items()} | {"__MACOSX/photos/._1": b""}
    assert bytes_of(pack(members), folder_storage) == MEMBERS


def test_a_single_class_folder_is_not_taken_for_a_folder_around_classes(pack, folder_storage):
    assert everything_of(pack({"cat/1.png": b"x"}), folder_storage)[0] == {"cat/1.png": "cat"}


def test_a_file_beside_the_folder_around_the_classes_does_not_matter_unless_it_is_an_image(pack, folder_storage):
    wrapped = {f"photos/{name}": content for name, content in MEMBERS.items()}
    assert bytes_of(pack(wrapped | {"LICENSE": b"free"}), folder_storage) == MEMBERS
    entries, rejects = everything_of(pack(wrapped | {"cover.JPG": b"x"}), folder_storage)
    assert set(entries.values()) == {"photos"}
    assert rejects == {"cover.JPG": "no_class_folder"}


# 3 is Unix, 0 is DOS. `unzip` gives the same names, but for code page 437 of DOS, of which it makes Latin-1.
@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize(
    ("system", "name", "key"),
    [
        (3, "käse/1".encode(), "käse/1"),
        (3, b"k\xe4se/1", "k%E4se/1"),
        (3, b"cat\\1/x", "cat\\1/x"),
        (0, "käse/1".encode("cp437"), "käse/1"),
        (0, "käse/1".encode(), "käse/1"),
        (0, b"cat\\1", "cat/1"),
        (0, b"cat/a\\1", "cat/a\\1"),
    ],
)
def test_names_in_a_zip_are_those_that_unzip_gives(tmp_path, folder_storage, system, name, key):
    path = zip_with_names(tmp_path / "a.zip", [name, b"dog/2"], system=system)
    assert bytes_of(path, folder_storage) == {key: b"0", "dog/2": b"1"}


def test_a_name_in_the_extra_field_of_a_zip_counts_where_it_is_of_the_same_member(tmp_path, folder_storage):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for name, checked in (("k_se/1", b"k_se/1"), ("dog/2", b"other")):
            member = zipfile.ZipInfo(name)
            content = struct.pack("<BL", 1, zlib.crc32(checked)) + "käse/1".encode()
            member.extra = struct.pack("<HH", 0x7075, len(content)) + content
            opened.writestr(member, b"x")
    assert set(bytes_of(path, folder_storage)) == {"käse/1", "dog/2"}


def test_a_tar_is_known_by_its_content(tmp_path, folder_storage):
    plain = gzip.decompress(tar_of(MEMBERS))
    packed = {"a.tar": plain, "a.tar.gz": plain, "a.tar.bz2": bz2.compress(plain), "a.tbz2": bz2.compress(plain)}
    packed |= {"a.tar.xz": lzma.compress(plain), "a.txz": lzma.compress(plain), "b.tar.gz": lzma.compress(plain)}
    for name, data in packed.items():
        (tmp_path / name).write_bytes(data)
        assert bytes_of(tmp_path / name, folder_storage) == MEMBERS


def test_an_xz_of_several_streams_is_read_to_its_end(tmp_path, folder_storage):
    members = {f"{label}/{number}.png": os.urandom(70_000) for label in ("cat", "dog") for number in range(2)}
    plain, half = gzip.decompress(tar_of(members)), 150_000
    path = tmp_path / "a.tar.xz"
    path.write_bytes(lzma.compress(plain[:half]) + bytes(100_000) + lzma.compress(plain[half:]) + bytes(8))
    assert bytes_of(path, folder_storage) == members


def test_an_xz_that_asks_for_gigabytes_of_memory_is_refused(tmp_path, folder_storage):
    path = tmp_path / "a.tar.xz"
    packed = bytearray(xz_of(MEMBERS))
    # The dictionary's size, 2 GiB, in the block's header (https://tukaani.org/xz/xz-file-format.txt, 3.1 and 5.3.1).
    header_size_bytes = (packed[12] + 1) * 4
    assert packed[14:16] == b"\x21\x01"
    packed[16] = 38
    packed[8 + header_size_bytes : 12 + header_size_bytes] = struct.pack(
        "<I", zlib.crc32(packed[12 : 8 + header_size_bytes])
    )
    path.write_bytes(packed)
    assert "Memory usage limit" in refusal(path, folder_storage)


def test_a_file_with_two_names_in_a_tar_has_both(tmp_path, folder_storage):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(tar_of(MEMBERS | {"cat/again.png": special("cat/again.png", tarfile.LNKTYPE, "cat/1.png")}))
    assert bytes_of(path, folder_storage) == MEMBERS | {"cat/again.png": MEMBERS["cat/1.png"]}
    path.write_bytes(tar_of(MEMBERS | {"cat/again.png": special("cat/again.png", tarfile.LNKTYPE, "/etc/passwd")}))
    assert "`/etc/passwd` would be written outside of the folder" in refusal(path, folder_storage)


def test_what_was_unpacked_is_gone_afterwards(pack, folder_storage):
    with open_source(DatasetConfig(source=str(pack(MEMBERS))), folder_storage) as source:
        assert Path(source.root).is_dir()
        assert source.description["kind"] == "archive"
    assert not Path(source.root).exists()


@pytest.mark.parametrize("name", ["../out.png", "cat/../../out.png", "{tmp_path}/out.png", "cat/../1.png"])
def test_a_member_that_leads_out_of_the_folder_is_refused(pack, folder_storage, tmp_path, name):
    members = {"cat/1.png": b"x", name.format(tmp_path=tmp_path): b"evil"}
    assert "outside of the folder" in refusal(pack(members), folder_storage)
    assert not (tmp_path / "out.png").exists()


def test_backslashes_of_windows_lead_nowhere_else(tmp_path, folder_storage):
    path = zip_with_names(tmp_path / "a.zip", [b"cat\\1.png", b"dog\\..\\..\\out"], system=0)
    assert "outside of the folder" in refusal(path, folder_storage)


@pytest.mark.parametrize(
    "member",
    [
        special("cat/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("cat/early", tarfile.LNKTYPE, "cat/later.png"),
        special("cat/device", tarfile.CHRTYPE),
        special("cat/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda member: member.name,
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, folder_storage, member):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(tar_of({"cat/1.png": b"x", member.name: member}))
    assert member.name in refusal(path, folder_storage)


def test_links_in_a_zip_are_refused(tmp_path, folder_storage):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as opened:
        link = zipfile.ZipInfo("cat/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(link, "/etc/passwd")
    assert "is a link" in refusal(path, folder_storage)


def test_an_archive_that_unpacks_to_more_than_allowed_is_refused(pack, folder_storage):
    message = refusal(pack({"cat/1.png": bytes(10_000_000)}), folder_storage, source_max_size_bytes=1_000_000)
    assert "source_max_size_bytes, 1,000,000 bytes" in message


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_zeros_behind_the_end_of_a_tar_count_too(tmp_path, folder_storage, compress):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(compress(gzip.decompress(tar_of(MEMBERS)) + bytes(5_000_000)))
    assert "unpacks to more" in refusal(path, folder_storage, source_max_size_bytes=1_000_000)


def test_a_zip_that_lies_about_sizes_is_refused(tmp_path, folder_storage):
    honest = zip_of({"cat/1.png": bytes(1_000_000)})
    path = tmp_path / "a.zip"
    path.write_bytes(honest.replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    assert "damaged" in refusal(path, folder_storage)


def test_a_tar_header_that_claims_gigabytes_is_refused_before_it_is_read(tmp_path, folder_storage):
    header = special("pax", tarfile.XHDTYPE)
    header.size = 7 * 1024**3
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1024**2)))
    assert "a header claims" in refusal(path, folder_storage)


def test_more_members_than_anyone_has_are_refused(pack, folder_storage, monkeypatch):
    monkeypatch.setattr(archive_module, "MAX_MEMBERS", 3)
    assert "more than 3 members" in refusal(pack({f"cat/{n}.png": b"x" for n in range(4)}), folder_storage)


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile warns while the test writes it
def test_a_member_that_comes_twice_is_refused(tmp_path, folder_storage):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("cat/1.png", b"one")
        opened.writestr("cat/1.png", b"other")
    assert "comes twice" in refusal(path, folder_storage)


@pytest.mark.parametrize("name", ["cat/1.png", "cat/1.png/deep"])
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_folder_with_the_name_of_a_file_is_refused(tmp_path, folder_storage, kind, name):
    folder = {f"{name}/": b"" if kind == "zip" else special(name, tarfile.DIRTYPE)}
    path = tmp_path / f"a.{kind}"
    path.write_bytes((zip_of if kind == "zip" else tar_of)({"cat/1.png": b"x"} | folder))
    message = refusal(path, folder_storage)
    assert f"`{name}" in message
    assert "comes twice, or as file and as folder" in message


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".txz"])
def test_a_file_that_is_no_archive_is_known_without_unpacking_it(tmp_path, folder_storage, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(zip_of(MEMBERS) if suffix == ".zip" else tar_of(MEMBERS))
    check_archive(path, uri=str(path))
    path.write_bytes(b"a page that says that the file has moved")
    refused = refusal(path, folder_storage)
    with pytest.raises(DatasetError) as caught:
        check_archive(path, uri=str(path))
    assert caught.value.message == refused.replace(caught.value.advice, "").strip()
    assert "damaged, encrypted or no such archive" in refused


def test_a_zip_that_was_cut_is_known_without_unpacking_it(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zip_of(MEMBERS)[:-40])
    with pytest.raises(DatasetError, match="damaged"):
        check_archive(path, uri=str(path))


def test_a_damaged_archive_is_refused(pack, folder_storage):
    path = pack({f"cat/{number}.png": os.urandom(1000) for number in range(20)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(path, folder_storage)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    assert "damaged" in refusal(path, folder_storage)


@pytest.mark.parametrize(("suffix", "packed"), [(".zip", zip_of), (".tar.xz", xz_of)])
def test_an_archive_in_a_bucket(s3_storage, suffix, packed):
    open_store(s3_storage).put(f"photos{suffix}", packed(MEMBERS))
    assert bytes_of(f"{s3_storage.uri}/photos{suffix}", s3_storage) == MEMBERS


def test_an_archive_in_a_bucket_that_is_missing_or_too_large(s3_storage):
    with pytest.raises(DatasetError, match=r"photos.zip, and there is nothing there"):
        everything_of(f"{s3_storage.uri}/photos.zip", s3_storage)
    open_store(s3_storage).put("photos.zip", zip_of(MEMBERS))
    with pytest.raises(DatasetError, match="is larger than dataset"):
        everything_of(f"{s3_storage.uri}/photos.zip", s3_storage, source_max_size_bytes=10)


class Answers(BaseHTTPRequestHandler):
    """Gives what the server's `answers` hold, one a request: a status, and how many bytes are left out at the end."""

    def do_GET(self):
        status, left_out = self.server.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body[: len(self.server.body) - left_out])

    def log_message(self, *args):
        pass


@pytest.fixture
def web():
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.body = zip_of(MEMBERS)
        server.url = f"http://127.0.0.1:{server.server_port}/photos.zip"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_an_archive_from_the_web(web, folder_storage):
    web.answers = [(200, 0)]
    assert bytes_of(web.url, folder_storage) == MEMBERS


def test_passing_faults_of_the_web_are_tried_again(web, folder_storage):
    web.answers = [(503, 0), (200, 5), (200, 0)]
    assert bytes_of(web.url, folder_storage) == MEMBERS
    assert web.answers == []


@pytest.mark.parametrize(("status", "found"), [(404, "nothing there"), (403, "answers 403")])
def test_a_final_answer_of_the_web_is_an_error_without_the_secrets_of_the_address(web, folder_storage, status, found):
    web.answers = [(status, 0)]
    with pytest.raises(DatasetError, match=found) as caught:
        everything_of(f"{web.url}?signature=secret", folder_storage)
    assert "secret" not in str(caught.value)


def test_a_download_stops_where_it_gets_too_large(web, folder_storage):
    web.answers = [(200, 0)]
    with pytest.raises(DatasetError, match="is larger than"):
        everything_of(web.url, folder_storage, source_max_size_bytes=100)


def test_the_description_of_a_web_address_holds_no_secrets(web, folder_storage):
    web.answers = [(200, 0)]
    with open_source(DatasetConfig(source=f"{web.url}?token=secret#part"), folder_storage) as source:
        assert source.description == {"kind": "archive", "uri": web.url}

"""Listings of a bucket: sorted by name, large ones in several ranges at once, and the newest entry of a log.

A listing of several pages is divided where folders begin, or, among objects that are named by digests, by their first
digits. A range goes from one key to another, so that a page holds the objects of many small folders.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

from transfer.catalog import layout
from transfer.errors import StorageError
from transfer.runtime.parallel import in_order
from transfer.storage.s3_requests import Bucket
from transfer.storage.store import PARALLEL, StoredObject

_RANGES = 32
"""Twice as many as are listed at once, because they differ in size."""
_NAMED_BY_DIGEST = re.compile(r"[0-9a-f]{64}\b")
_EIGHT_DIGITS = 10_000_000
"""Numbers below begin with a zero, so that no number of nine digits is among them in a listing."""
Page = dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """Lists a bucket, `page_size` keys at a time. Raises StorageError, also for what is not as S3 documents it."""

    bucket: Bucket
    page_size: int = 1000

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose name starts with `prefix`, sorted by name.

        What ranges list ahead is in memory until it is their turn: of a large listing up to half of the objects.
        """
        pages = self._pages(self.bucket.key(prefix))
        first = next(pages)
        yield from self._objects_of(first)
        if not first.get("IsTruncated"):
            return
        starts = self._starts(self.bucket.key(prefix), after=_last_key(first))
        if not starts:
            for page in pages:
                yield from self._objects_of(page)
            return
        bounds = starts[:: -(-len(starts) // _RANGES)]
        ranges = zip([_last_key(first), *bounds], [*bounds, None], strict=True)
        stopped = threading.Event()
        with ThreadPoolExecutor(PARALLEL) as pool:
            started = (pool.submit(self._range, prefix, after, until, stopped) for after, until in ranges)
            try:
                for found in in_order(started, Future.result, is_full=lambda waiting: len(waiting) >= PARALLEL):
                    yield from found
            finally:
                stopped.set()

    def folders(self, prefix: str) -> Iterator[str]:
        """Names that begin with `prefix`, up to their next slash, of all objects that have one there; sorted."""
        for page in self._pages(self.bucket.key(prefix), Delimiter="/"):
            yield from map(self.bucket.name_of, _folders_of(page))

    def newest_entry(self, log: str) -> int:
        """The highest number in a log; 0 while it is empty.

        One page shows that of a short log. In a long one it is searched for: a listing from some number on shows higher
        entries, or there are none. Not all numbers need to have an entry.
        """
        newest = after = 0
        beyond: int | None = None
        while beyond is None or newest < beyond:
            numbers, is_whole = self._entries(log, after)
            newest = max(newest, *numbers, 0)
            if newest >= _EIGHT_DIGITS:
                found = (layout.entry_number_in(log, item.name) for item in self.objects(f"{log}/"))
                return max(number or 0 for number in found)
            if is_whole and numbers:
                break
            if is_whole:
                beyond = after
            after = 2 * newest if beyond is None else (newest + beyond) // 2
        return newest

    def _entries(self, log: str, after: int) -> tuple[list[int], bool]:
        """Numbers of the first entries after a number, and whether there are no others behind them."""
        start = self.bucket.key(layout.entry(log, after)) if after else ""
        for page in self._pages(self.bucket.key(f"{log}/"), after=start):
            names = [item.name for item in self._objects_of(page)]
            numbers = [number for name in names if (number := layout.entry_number_in(log, name))]
            if any(layout.below(log, name)[0] > ":" for name in names):  # Behind all digits.
                return numbers, True
            if numbers:
                return numbers, not page.get("IsTruncated")
        return [], True

    def _range(self, prefix: str, after: str, until: str | None, stopped: threading.Event) -> list[StoredObject]:
        """Objects whose keys come after `after`, up to `until`; fewer once nobody waits for them."""
        found: list[StoredObject] = []
        for page in self._pages(self.bucket.key(prefix), after=after):
            found += self._objects_of(page, until)
            if stopped.is_set() or (until and _last_key(page) > until):
                break
        return found

    def _starts(self, key: str, after: str) -> list[str]:
        """Keys after `after` at which a range may begin, sorted."""
        found = level = self._inside(key, after)
        while level and len(found) < _RANGES:
            with ThreadPoolExecutor(PARALLEL) as pool:
                level = [start for inside in pool.map(self._inside, level) for start in inside]
            found = [*found, *level]
        return sorted(start for start in found if start > after)

    def _inside(self, key: str, after: str = "") -> list[str]:
        """Keys that begin with `key` and divide what does: its folders, or one digit more of digests."""
        found: list[str] = []
        for page in self._pages(key, after=after, Delimiter="/"):
            folders = _folders_of(page)
            if not folders:
                if page.get("IsTruncated") and _NAMED_BY_DIGEST.match(_last_key(page).rpartition("/")[2]):
                    found += [f"{key}{digit}" for digit in "0123456789abcdef"]
                break
            found += folders
        return found

    def _pages(self, key: str, *, after: str = "", **options: str) -> Iterator[Page]:
        """Pages of what begins with `key`, of which at least one has a key after `after`."""
        request: dict[str, Any] = {"Bucket": self.bucket.name, "Prefix": key, "MaxKeys": self.page_size, **options}
        if after:
            request["StartAfter"] = after
        name = self.bucket.name_of(key)
        last = {"Contents": after, "CommonPrefixes": ""}
        while True:
            page = cast(
                "Page",
                self.bucket.call("list", name or "everything", lambda: self.bucket.client.list_objects_v2(**request)),
            )
            for kind, field in (("Contents", "Key"), ("CommonPrefixes", "Prefix")):
                for item in page.get(kind, []):
                    # By code point, which is the order of the UTF-8 bytes, as S3 documents it.
                    if item[field] <= last[kind]:
                        raise self._not_as_documented(name, f"{item[field]!r} comes after {last[kind]!r}")
                    last[kind] = item[field]
            request["ContinuationToken"] = page.get("NextContinuationToken")
            if page.get("IsTruncated") and not request["ContinuationToken"]:
                raise self._not_as_documented(name, "a page says that more follow, and not where they begin")
            yield page
            if not page.get("IsTruncated"):
                return

    def _objects_of(self, page: Page, until: str | None = None) -> Iterator[StoredObject]:
        for item in page.get("Contents", []):
            # Web consoles create empty objects that represent folders.
            if not item["Key"].endswith("/") and (until is None or item["Key"] <= until):
                modified = item["LastModified"]
                # Some services leave the ETag out.
                stamp = f"{item['ETag']} {modified.isoformat()}" if item.get("ETag") else ""
                yield StoredObject(self.bucket.name_of(item["Key"]), item["Size"], stamp, modified.timestamp())

    def _not_as_documented(self, prefix: str, found: str) -> StorageError:
        return StorageError(
            f"{self.bucket.uri} at {self.bucket.endpoint} does not list {prefix or 'its objects'} as S3 does: {found}.",
            advice="Use a general purpose bucket of a service that knows ListObjectsV2; S3 Express directory buckets "
            "list without an order.",
        )


def _last_key(page: Page) -> str:
    """Key of the last object of a page; empty if there is none."""
    key: str = page.get("Contents", [{"Key": ""}])[-1]["Key"]
    return key


def _folders_of(page: Page) -> list[str]:
    return [inside["Prefix"] for inside in page.get("CommonPrefixes", [])]

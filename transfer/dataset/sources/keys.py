"""Keys: how an image is named, whatever its file is called.

A key is the path relative to the source with `/` between its parts. `%`, characters that do not print (line ends among
them) and bytes that are not UTF-8 are written as `%XX`, byte by byte; a name that is not in Unicode's normal form C
has all its characters beyond ASCII written so. So keys are printable and in normal form C, no two files share one, and
the file's name can be had back.
"""

from __future__ import annotations

import os
import unicodedata
from urllib.parse import quote_from_bytes, unquote_to_bytes

_IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


def key_of(name: str) -> str:
    """Escape a path as Python gives it, undecodable bytes as surrogates."""
    if name.isascii() and name.isprintable() and "%" not in name:
        return name
    key = "".join(character if _is_plain(character) else _escape(character) for character in name)
    if not unicodedata.is_normalized("NFC", key):
        key = "".join(character if character.isascii() else _escape(character) for character in key)
    return key


def name_of(key: str) -> str:
    """Give back the path that a key stands for."""
    return os.fsdecode(unquote_to_bytes(key))


def class_name_of(name: str) -> str:
    """Name the class of a folder: its name in normal form C, as it is where it is text and escaped where it is not."""
    name = unicodedata.normalize("NFC", name)
    try:
        name.encode()
    except UnicodeEncodeError:
        return key_of(name)
    return name


def normal_class_name(name: str) -> str:
    """Bring a class name as people type it into normal form C, without space around it."""
    return unicodedata.normalize("NFC", name).strip()


def is_ignored(name: str) -> bool:
    """Whether a file or folder is one that systems leave behind: hidden, or a thumbnail cache."""
    return name.startswith(".") or name.lower() in _IGNORED_NAMES


def _is_plain(character: str) -> bool:
    return character.isprintable() and character != "%"


def _escape(character: str) -> str:
    return quote_from_bytes(os.fsencode(character), safe="")

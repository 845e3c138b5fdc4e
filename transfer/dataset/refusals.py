"""Why an image is refused, and how that is said."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RejectReason(StrEnum):
    """Why an image was refused."""

    EMPTY = "empty"
    TOO_LARGE_FILE = "too_large_file"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    PIXEL_BOMB = "pixel_bomb"
    TOO_DARK = "too_dark"
    CORRUPT = "corrupt"


@dataclass(frozen=True)
class RejectedImage:
    """An image that was refused: the reason to count by, and a sentence on what was found."""

    reason: RejectReason
    detail: str


class RefusedError(Exception):
    """The image is not taken."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.rejected = RejectedImage(reason, detail)

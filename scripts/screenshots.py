"""Take pictures of the pages as a browser shows them: at three widths, light and dark.

    python -m scripts.screenshots --to /tmp/shots                          # of made-up examples
    python -m scripts.screenshots --to /tmp/shots --pages FOLDER           # of what `transfer open --to FOLDER` wrote

It takes Chromium or Chrome, which is no dependency of the project (Debian: the package `chromium`), and talks to it
over a pipe by the DevTools protocol. Each page becomes `<page>-<width>-<light|dark>.png`, as long as it is. A page
that is wider than its window is named at the end, as a person would have to scroll sideways, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.example_pages import write_examples

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
WIDTHS = (400, 900, 1400)
SCHEMES = ("light", "dark")
WINDOW_HEIGHT = 900
MOST_HEIGHT = 12_000
"""What lies below is cut off."""


class Browser:
    """A browser without a window that shows one page. Messages are JSON, ended by a zero byte."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._received = write, read, bytearray()
        self._asked, self._session = 0, None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Page.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return what it answers."""
        self._asked += 1
        call = {"id": self._asked, "method": method, "params": parameters}
        message = json.dumps(call | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        os.write(self._write, message)
        answer = self._wait("id", self._asked)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def show(self, page: Path, *, width: int, scheme: str) -> None:
        """Show a file in a window of this width, until it is loaded."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=WINDOW_HEIGHT,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=page.resolve().as_uri())
        self._wait("method", "Page.loadEventFired")

    def size(self) -> tuple[int, int]:
        """Width and height of the whole page, in CSS pixels."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        return round(size["width"]), round(size["height"])

    def picture(self, *, width: int, height: int) -> bytes:
        """The top left of the page, as PNG."""
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        return base64.b64decode(self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"])

    def _wait(self, key: str, value: object) -> dict[str, Any]:
        """The next message of which `key` is `value`; those before it are of no interest."""
        while True:
            while b"\0" not in self._received:
                part = os.read(self._read, 1 << 20)
                if not part:
                    raise RuntimeError("The browser has ended.")
                self._received += part
            text, _, rest = self._received.partition(b"\0")
            self._received = bytearray(rest)
            message = json.loads(text)
            if message.get(key) == value:
                return message


# The browser reads from 3 and writes to 4, and either pipe may have one of these numbers here.
_ON_3_AND_4 = """
import fcntl, os, sys
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(high[0], 3), os.dup2(high[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


@contextmanager
def open_browser(program: str) -> Iterator[Browser]:
    """Start a browser, and end it."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Root may not have Chromium's sandbox, and pages have no scripts.
        options = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--hide-scrollbars"]
        options += ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        process = subprocess.Popen(
            [sys.executable, "-c", _ON_3_AND_4, str(to_read), str(from_write), program, *options],
            pass_fds=(to_read, from_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        try:
            yield Browser(to_write, from_read)
        finally:
            process.terminate()
            process.wait()


def find_browser(programs: Sequence[str] = BROWSERS) -> str | None:
    """The path of the first of these programs that there is."""
    return next(filter(None, map(shutil.which, programs)), None)


def take(pages: list[Path], to: Path, *, program: str) -> list[str]:
    """Take all pictures; returns which pages are wider than their window, and by how much."""
    to.mkdir(parents=True, exist_ok=True)
    too_wide = []
    with open_browser(program) as browser:
        for page in pages:
            for width in WIDTHS:
                for scheme in SCHEMES:
                    browser.show(page, width=width, scheme=scheme)
                    found, height = browser.size()
                    if found > width:
                        too_wide.append(f"{page.name} is {found} pixels wide in a window of {width}")
                    picture = browser.picture(width=width, height=min(height, MOST_HEIGHT))
                    (to / f"{page.stem}-{width}-{scheme}.png").write_bytes(picture)
    return list(dict.fromkeys(too_wide))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--pages", type=Path, help="folder with the HTML files; default: examples are made")
    parser.add_argument("--browser", help=f"program; default: the first of {', '.join(BROWSERS)}")
    arguments = parser.parse_args()
    wanted = [arguments.browser] if arguments.browser else BROWSERS
    program = find_browser(wanted)
    if program is None:
        print(
            f"There is no browser here: none of {', '.join(wanted)}. Install one (Debian: the package chromium), or "
            "name one by --browser.",
            file=sys.stderr,
        )
        return 2
    pages = arguments.pages or arguments.to / "pages"
    if arguments.pages is None:
        write_examples(pages)
    found = sorted(pages.glob("*.html"))
    too_wide = take(found, arguments.to, program=program)
    print(f"{len(found)} pages, {len(found) * len(WIDTHS) * len(SCHEMES)} pictures in {arguments.to}")
    print("\n".join(too_wide), end="\n" if too_wide else "")
    return 1 if too_wide else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a sweep shows on a terminal."""

import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def on_a_terminal():
    """Run code with standard error on a terminal of 80 × 15; returns all that was written to it, and to stdout."""

    def run(code):
        main, side = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "15"}
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdout=subprocess.PIPE,
            stderr=side,
            cwd=ROOT,
            env=environment,
        ) as process:
            os.close(side)
            seen = b""
            try:
                while data := os.read(main, 65536):
                    seen += data
            except OSError:
                pass  # How a terminal says that nobody writes to it any more.
            out = process.stdout.read()
        assert process.returncode == 0, seen.decode()
        return seen.decode(), out.decode()

    return run


def test_on_a_terminal_the_table_is_live_and_logs_stand_above_it(on_a_terminal):
    seen, out = on_a_terminal("""
        import logging, sys
        from tests.trial_records import trial
        from transfer.tuning.table import TrialTable
        logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)
        with TrialTable("accuracy", total=2) as table:
            table.started(1, {"head.dropout": 0.1})
            table._live.refresh()
            logging.info("said meanwhile")
            table.ended(trial(1, {"head.dropout": 0.1}, value=0.5))
        logging.info("said after")
    """)
    assert out == ""
    # The table is erased first, and drawn again below.
    assert re.search(r"\x1b\[2K(\x1b\[[0-9;]*m)*said meanwhile", seen)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen)
    assert last.index("said meanwhile") < last.rindex("★ 1") < last.index("said after")
    assert "1 of 2 trials ended, 0 running" in last
    assert "trial 1/2:" not in last

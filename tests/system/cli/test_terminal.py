"""What is shown on a terminal."""

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


def test_the_table_of_a_sweep_is_live_and_logs_stand_above_it(on_a_terminal):
    seen, out = on_a_terminal("""
        import logging, sys
        from tests.runs import trial
        from transfer.tuning.live_table import TrialTable
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


def test_epochs_are_rows_under_their_phase_and_what_was_done_on_the_way_is_gone(on_a_terminal):
    seen, _ = on_a_terminal("""
        from transfer.catalog.run import EpochRow
        from transfer.config import PhaseConfig
        from transfer.training.epoch_table import EpochTable
        from transfer.runtime.progress import progress
        table = EpochTable([PhaseConfig(epochs=2), PhaseConfig(unfreeze=1, epochs=1)])
        figures = {"accuracy": 0.5, "validation_accuracy": 0.25, "learning_rate": 1e-3, "seconds": 1.0}
        for epoch, phase in enumerate((0, 0, 1)):
            with progress("on the way", total=8, stays=False) as advance:
                advance(8)
            table.show(EpochRow(phase=phase, epoch=epoch, loss=1.5, validation_loss=1.0 + epoch, **figures))
    """)
    # A bar is erased where it stood: what is left of a line is what was written after that.
    left = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line.rpartition("\x1b[2K")[2]).strip() for line in seen.split("\n")]
    rows = [line for line in left if line and "on the way" not in line]
    assert [row.split()[0] for row in rows] == ["phase", "epoch", "1/2", "2/2", "phase", "epoch", "1/1"]
    assert rows[0] == "phase 0: head"
    assert rows[4] == "phase 1: last block"
    assert ["★" in row for row in rows] == [False, False, True, False, False, False, True]
    assert max(map(len, rows)) <= 80

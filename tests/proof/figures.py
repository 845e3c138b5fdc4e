"""What the tests of this folder counted, as JSON lines; `python -m tests.proof.figures FILE` shows them as a table."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from transfer.config import StorageConfig

# One of these is the number of trials, `failures` how many of them failed; the bound on the rate comes from both.
TRIALS = ("kills", "races", "flips", "trials", "executions")


def note(subject: str, **figures: float | str) -> None:
    """Append a line to the file named by $TRANSFER_CHAOS_FIGURES, where that is set."""
    path = os.environ.get("TRANSFER_CHAOS_FIGURES")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"subject": subject, **figures}) + "\n")


def kind_of(storage: StorageConfig) -> str:
    """For the subject: what kind of storage it was."""
    return "S3" if storage.uri.startswith("s3:") else "folder"


def upper_bound(failures: int, trials: int) -> float:
    """Largest failure rate that so few failures allow with 95 % confidence: 3/n, else Clopper and Pearson's."""
    if failures == 0:
        return min(3 / trials, 1.0)
    from scipy.stats import beta

    return float(beta.ppf(0.95, failures + 1, trials - failures)) if failures < trials else 1.0


def table(lines: list[dict[str, float | str]]) -> str:
    """Rows of Markdown: the subject, what was counted, and the bound where there is one."""
    rows = ["| subject | figures | failure rate, 95 % bound |", "|---|---|---|"]
    for line in lines:
        figures = [_shown(name, value) for name, value in line.items() if name != "subject"]
        trials = next((int(line[name]) for name in TRIALS if name in line), 0)
        bound = f"{upper_bound(int(line.get('failures', 0)), trials):.2%}" if trials else ""
        rows.append(f"| {line['subject']} | {', '.join(figures)} | {bound} |")
    return "\n".join(rows)


def _shown(name: str, value: float | str) -> str:
    words = name.replace("_", " ")
    return f"{words}: {value}" if isinstance(value, str) else f"{value:,} {words}"


if __name__ == "__main__":
    noted = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    sys.stdout.write(table([json.loads(line) for line in noted]) + "\n")

"""Suggest a learning rate for a phase, by a range test.

    ray job submit --working-dir . -- python -m jobs.lr_find config.yaml

Takes what `transfer lr-find` takes, and ends with its exit code.
"""

import sys

from transfer.cli import app

if __name__ == "__main__":
    app(["lr-find", *sys.argv[1:]], prog_name="transfer")

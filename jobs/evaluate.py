"""Evaluate a finished run: --run-id RUN.

    ray job submit --working-dir . -- python -m jobs.evaluate config.yaml

Takes what `transfer evaluate` takes, and ends with its exit code.
"""

import sys

from transfer.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]], prog_name="transfer")

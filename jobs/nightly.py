"""Ingest what is new, train on it, and promote what proves better than what serves. Made to be scheduled.

    ray job submit --working-dir . -- python -m jobs.nightly config.yaml

Takes what `transfer nightly` takes, and ends with its exit code.
"""

import sys

from transfer.cli import app

if __name__ == "__main__":
    app(["nightly", *sys.argv[1:]], prog_name="transfer")

"""Bring images into storage as a dataset version.

    ray job submit --working-dir . -- python -m jobs.ingest config.yaml

Takes what `transfer ingest` takes, and ends with its exit code.
"""

import sys

from transfer.cli import app

if __name__ == "__main__":
    app(["ingest", *sys.argv[1:]], prog_name="transfer")

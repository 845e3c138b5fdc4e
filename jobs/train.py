"""Ingest, train, evaluate, publish and promote.

    ray job submit --working-dir . -- python -m jobs.train config.yaml

Takes what `transfer train` takes, and ends with its exit code.
"""

import sys

from transfer.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]], prog_name="transfer")

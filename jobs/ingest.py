"""Bring images into storage as a dataset version.

    ray job submit --working-dir . -- python -m jobs.ingest config.yaml

Takes what `transfer ingest` takes, and ends with its exit code.
"""

from transfer.cli.main import main

if __name__ == "__main__":
    main("ingest")

"""Ingest, train, evaluate, publish and promote.

    ray job submit --working-dir . -- python -m jobs.train config.yaml

Takes what `transfer train` takes, and ends with its exit code.
"""

from transfer.cli.main import main

if __name__ == "__main__":
    main("train")

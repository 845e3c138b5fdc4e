"""Ingest what is new, train on it, and promote what proves better than what serves. Made to be scheduled.

    ray job submit --working-dir . -- python -m jobs.nightly config.yaml

Takes what `transfer nightly` takes, and ends with its exit code.
"""

from transfer.cli.main import main

if __name__ == "__main__":
    main("nightly")

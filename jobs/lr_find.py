"""Suggest a learning rate for a phase, by a range test.

    ray job submit --working-dir . -- python -m jobs.lr_find config.yaml

Takes what `transfer lr-find` takes, and ends with its exit code.
"""

from transfer.cli.main import main

if __name__ == "__main__":
    main("lr-find")

"""Publish an evaluated run: --run-id RUN.

    ray job submit --working-dir . -- python -m jobs.publish config.yaml

Takes what `transfer publish` takes, and ends with its exit code.
"""

from transfer.cli.main import main

if __name__ == "__main__":
    main("publish")

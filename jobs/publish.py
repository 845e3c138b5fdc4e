"""Publish an evaluated run: --run-id RUN.

    ray job submit --working-dir . -- python -m jobs.publish config.yaml

Takes what `transfer publish` takes, and ends with its exit code.
"""

import sys

from transfer.cli import app

if __name__ == "__main__":
    app(["publish", *sys.argv[1:]], prog_name="transfer")

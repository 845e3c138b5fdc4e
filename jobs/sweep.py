"""Search a space of configurations with Ray Tune, and publish what wins.

    ray job submit --working-dir . -- python -m jobs.sweep config.yaml

Takes what `transfer sweep` takes, and ends with its exit code.
"""

import sys

from transfer.cli import app

if __name__ == "__main__":
    app(["sweep", *sys.argv[1:]], prog_name="transfer")

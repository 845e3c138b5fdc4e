"""Answer images with the published model: --images FOLDER --output FILE.parquet.

    ray job submit --working-dir . -- python -m jobs.predict config.yaml

Takes what `transfer predict` takes, and ends with its exit code.
"""

import sys

from transfer.cli import app

if __name__ == "__main__":
    app(["predict", *sys.argv[1:]], prog_name="transfer")

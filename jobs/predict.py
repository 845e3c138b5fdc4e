"""Answer images with the published model: --images FOLDER --output FILE.parquet [--overwrite].

    ray job submit --working-dir . -- python -m jobs.predict config.yaml

Takes what `transfer predict` takes, and ends with its exit code.
"""

from transfer.cli.main import main

if __name__ == "__main__":
    main("predict")

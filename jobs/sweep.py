"""Search a space of configurations with Ray Tune, and publish what wins.

    ray job submit --working-dir . -- python -m jobs.sweep config.yaml

Takes what `transfer sweep` takes, and ends with its exit code.
"""

from transfer.cli.main import main

if __name__ == "__main__":
    main("sweep")

"""Evaluate a finished run: --run-id RUN.

    ray job submit --working-dir . -- python -m jobs.evaluate config.yaml

Takes what `transfer evaluate` takes, and ends with its exit code.
"""

from transfer.cli.main import main

if __name__ == "__main__":
    main("evaluate")

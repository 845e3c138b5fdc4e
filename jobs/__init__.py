"""One short file a job, for `ray job submit --working-dir . -- python -m jobs.NAME config.yaml`."""

"""All of a storage at a glance: its models and what serves, nights, sweeps and runs, linked with each other."""

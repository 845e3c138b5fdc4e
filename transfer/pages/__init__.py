"""An index of a whole storage: its models and the versions that serve, nights, sweeps and runs, with links."""

"""Sweeps: Ray Tune searches a space of configurations; trials share everything that is the same."""

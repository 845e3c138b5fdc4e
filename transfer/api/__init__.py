"""The jobs for Python programs and notebooks: `import transfer` exports these functions and classes.

Nothing here works by itself: `configure` builds the configuration, `transfer.jobs` does the job, and what comes out
is wrapped in objects to look at and to ask (`results`).
"""

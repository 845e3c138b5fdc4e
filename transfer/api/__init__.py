"""The jobs for Python programs and notebooks: `import transfer` exports these functions and classes.

This room does no work of its own: `configure` builds the configuration, `transfer.jobs` does the job, and `results`
wraps its outcome in objects with tables, figures and `predict`.
"""

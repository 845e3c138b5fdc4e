"""The only uses of private parts of Ray, as read in the release VERSION.

The module `cluster` imports Ray, `train` Ray Train, `tune` Ray Tune. Read the source of a new release before changing
VERSION and the pin in pyproject.toml; tests/unit/runtime/test_private.py tests that the parts exist.
"""

VERSION = "2.60"
"""The release of Ray that was read."""

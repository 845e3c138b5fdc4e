"""What this project uses of Ray that is private to it, as read in VERSION; nothing else does.

Modules that load what they are about: `cluster` Ray itself, `train` Ray Train, `tune` Ray Tune. A new version of Ray is
read again before VERSION and the pin in pyproject.toml change; tests/unit/runtime/test_private.py says what must be
there.
"""

VERSION = "2.60"
"""The release of Ray that was read."""

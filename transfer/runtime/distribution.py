"""The project as a package that is installed: what pip calls it, how its extras come, and which versions are here."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from transfer import __version__

DISTRIBUTION = "transfer-on-ray"
"""The name for pip. On the public index `transfer` is another project."""


def install_extra(extra: str) -> str:
    """What to do about an extra that is missing, as a sentence."""
    return f"Install the extra: pip install '{DISTRIBUTION}[{extra}]'."


def versions() -> dict[str, str]:
    """Versions of this project and of what it stands on, as they are installed. Nothing is imported."""
    return {
        "transfer": __version__,
        **{name: _installed(name) for name in ("TensorFlow", "Keras", "Ray")},
        "Python": platform.python_version(),
    }


def _installed(name: str) -> str:
    try:
        return version(name.lower())
    except PackageNotFoundError:
        return "not installed"

"""The installed package: its name for pip, its extras, and the versions of packages."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from transfer import __version__

DISTRIBUTION = "transfer-on-ray"
"""The name for pip. On the public index `transfer` is another project."""


def install_extra(extra: str) -> str:
    """Advice to install a missing extra, as a sentence."""
    return f"Install the extra: pip install '{DISTRIBUTION}[{extra}]'."


def versions() -> dict[str, str]:
    """Installed versions of this project and of its main dependencies. Nothing is imported."""
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

"""Names for the classes of a pretrained classifier: a user's own, or those of ImageNet. Needs no TensorFlow."""

from __future__ import annotations

from pathlib import Path

from transfer.config.paths import path_here
from transfer.errors import ConfigError

IMAGENET = Path(__file__).with_name("imagenet_classes.txt")
"""A name a line, in the order of the outputs of networks that were trained on ImageNet's 1,000 classes."""
IMAGENET_SOURCE = (
    "ImageNet (ILSVRC 2012): words of WordNet 3.0, Copyright 2006 by Princeton University, WordNet License"
)
BACKGROUND = "background"
"""The class before those of ImageNet in networks with 1,001 outputs."""
MAX_FILE_SIZE_BYTES = 4 * 1024**2


def given_names(classes: str | list[str] | None) -> list[str] | None:
    """The names that `publish.classes` gives, itself or in a file; None if it gives none.

    Raises ConfigError if the file cannot be read, if a name is empty, or if two are the same.
    """
    if classes is None:
        return None
    names = classes if isinstance(classes, list) else _read(classes)
    names = [name.strip() for name in names]
    if "" in names:
        raise ConfigError(
            f"publish.classes has no name for class {names.index('')} of {len(names)}.",
            advice="Give each class a name, in the order of the network's outputs.",
        )
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ConfigError(f"publish.classes has the name `{twice}` twice.", advice="Give each class a name of its own.")
    return names


def names_of_outputs(names: list[str] | None, outputs: int, *, of: str) -> list[str]:
    """The names of so many outputs of a network: `names`, or those of ImageNet.

    `of`: the network, in the error. Raises ConfigError if their number is another one.
    """
    if names is None:
        imagenet = IMAGENET.read_text(encoding="utf-8").splitlines()
        known = {len(imagenet): imagenet, len(imagenet) + 1: [BACKGROUND, *imagenet]}
        if outputs in known:
            return known[outputs]
        raise ConfigError(
            f"{of} has {outputs:,} outputs, and nothing names its classes: only ImageNet's are known, for 1,000 or "
            "1,001 outputs.",
            advice="Set publish.classes to a list of names, or to a text file with a name a line, in the order of the "
            "outputs. A network that ends in features is trained: `transfer train`.",
        )
    # One output is the probability of the second of two classes.
    expected = max(outputs, 2)
    if len(names) != expected:
        raise ConfigError(
            f"publish.classes has {len(names):,} names, and {of} has {expected:,} classes.",
            advice="Give a name for each class, in the order of the network's outputs.",
        )
    return names


def _read(file: str) -> list[str]:
    path = path_here(file)
    try:
        if path.stat().st_size > MAX_FILE_SIZE_BYTES:
            raise ConfigError(f"publish.classes is {file}, which is larger than {MAX_FILE_SIZE_BYTES:,} bytes.")
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"publish.classes is {file}, which cannot be read: {error}.",
            advice="Give a text file in UTF-8 with a name a line, or the names themselves.",
        ) from error

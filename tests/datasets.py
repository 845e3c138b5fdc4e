"""Dataset versions as documents."""

from transfer.dataset.manifest import Dataset


def first_version(name, classes, **changes):
    """Version 1 of a dataset without images, unless `changes` say otherwise."""
    nothing = {"parent": None, "shards": [], "counts": {}, "rejects": None, "reject_counts": {}, "source": {}}
    return Dataset(**{"name": name, "number": 1, "classes": classes, **nothing, **changes})

"""Which classes of two dataset versions are the same."""

from __future__ import annotations

from collections.abc import Sequence


def places_among(classes: Sequence[str], others: Sequence[str], *, same_dataset: bool) -> list[int | None]:
    """For each of `classes` its index among `others`; None where it is not one of them.

    `same_dataset`: both are classes of versions of one dataset, in which an index never moves while names may change.
    Else names decide.
    """
    if same_dataset:
        return [index if index < len(others) else None for index in range(len(classes))]
    indices = {name: index for index, name in enumerate(others)}
    return [indices.get(name) for name in classes]

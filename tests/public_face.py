"""What `import transfer` exports and what stands behind it, as tests of its docstrings read them."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator

import transfer
import transfer.api
import transfer.config

NAMES = sorted(transfer.__all__)


def exported() -> Iterator[tuple[str, object]]:
    """Everything that `import transfer` exports, and the public methods of its classes, by name."""
    for name in NAMES:
        found = getattr(transfer, name)
        yield name, found
        if inspect.isclass(found):
            yield from ((f"{name}.{method}", function) for method, function in _public(vars(found)))


def functions() -> Iterator[tuple[str, Callable]]:
    """The exported functions and methods, and the public functions of `transfer.api` and `transfer.config`."""
    yield from ((name, found) for name, found in exported() if inspect.isfunction(found))
    for module in pkgutil.iter_modules(transfer.api.__path__, "transfer.api."):
        inside = importlib.import_module(module.name)
        yield from (
            (f"{module.name}.{name}", function)
            for name, function in _public(vars(inside))
            if function.__module__ == module.name
        )
    yield from ((f"transfer.config.{name}", function) for name, function in _public(vars(transfer.config)))


def classes() -> Iterator[tuple[str, type]]:
    """The exported classes."""
    yield from ((name, found) for name, found in exported() if inspect.isclass(found))


def sections(docstring: str) -> dict[str, dict[str, str]]:
    """The sections of a docstring (`Args`, `Returns`), and the entries of each: text by name."""
    found: dict[str, dict[str, str]] = {}
    entries: dict[str, str] = {}
    for line in inspect.cleandoc(docstring).splitlines():
        if heading := re.fullmatch(r"(Args|Returns|Raises|Example):", line):
            entries = found[heading[1]] = {}
        elif entry := re.fullmatch(r" {4}(\w+): (.+)", line):
            entries[entry[1]] = entry[2]
    return found


def examples(found: object) -> list[doctest.Example]:
    """The examples in the docstring of a function or class."""
    return doctest.DocTestParser().get_examples(found.__doc__ or "")


class _Checker(doctest.OutputChecker):
    """Compares outputs where an example shows one. Figures differ between machines, so most examples show none."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def run_examples(name: str, found: object) -> None:
    """Run the examples of a docstring, as lines typed after `import transfer`, in the current folder."""
    test = doctest.DocTest(examples(found), {"transfer": transfer}, name, inspect.getsourcefile(found), None, None)
    said: list[str] = []
    results = doctest.DocTestRunner(_Checker(), verbose=False).run(test, out=said.append)
    assert (results.attempted, results.failed) == (len(test.examples), 0), "".join(said)


def _public(names: dict[str, object]) -> Iterator[tuple[str, Callable]]:
    yield from ((name, found) for name, found in names.items() if inspect.isfunction(found) and name[0] != "_")

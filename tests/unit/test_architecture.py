"""Imports between rooms point one way, and heavy packages are imported in few rooms: what CONTRIBUTING.md says of both.

Counted are all imports of the source: also those inside functions, and those for type checkers only.
"""

import re
from fnmatch import fnmatch
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
TENSORFLOW = (
    "tensorflow",
    "keras",
    "keras_hub",
    "tf_keras",
    "tensorflow_hub",
    "tensorflow_serving",
    "tensorflow_datasets",
)
MAY_IMPORT_TENSORFLOW = (
    *("dataset.*", "backbone.*", "augmentation", "features.*", "training.*", "evaluation.*", "registry.*"),
    "network_check",  # runs on a worker
    *("runtime.startup", "runtime.preloaded", "runtime.numerics", "runtime.keras_private"),
    *("api.keras_model", "api.results"),  # what Python programs ask for
)
MAY_IMPORT_RAY = (
    *("runtime.actors", "runtime.cluster", "runtime.parallel", "runtime.ray_private.*"),
    *("training.distributed", "training.watchdog"),
    "tuning.*",
    "submission.*",  # Ray's client for jobs
)


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("transfer", include_external_packages=True, cache_dir=None)


def rooms_of_table():
    """The rooms of CONTRIBUTING.md's table, in its order: packages and modules directly below `transfer`."""
    rows = re.findall(r"^\| (`transfer/[^|]*) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [room for row in rows for room in re.findall(r"`transfer/(\w+)(?:/|\.py)`", row)]


def room_of(module):
    return module.split(".")[1]


def modules_importing(graph, packages):
    return {
        module.removeprefix("transfer.")
        for package in packages
        if package in graph.modules
        for module in graph.find_modules_that_directly_import(package)
    }


def test_the_table_has_every_room_once(graph):
    rooms = {room_of(module) for module in graph.find_children("transfer")} - {"__main__"}
    assert sorted(rooms_of_table()) == sorted(rooms)


def test_a_room_imports_only_rooms_above_it_in_the_table(graph):
    order = [*rooms_of_table(), "__main__"]
    arrows = [
        (importer, imported)
        for importer in graph.find_descendants("transfer")
        for imported in graph.find_modules_directly_imported_by(importer)
        if imported.startswith("transfer.")
    ]
    assert len(arrows) > 1000
    wrong = [
        f"{importer} imports {imported}"
        for importer, imported in arrows
        if order.index(room_of(importer)) < order.index(room_of(imported))
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle(graph):
    # A package's own module gathers what its modules define, and they import each other through it.
    modules = {module for module in graph.find_descendants("transfer") if not graph.find_children(module)}
    imported_by = {module: graph.find_modules_directly_imported_by(module) & modules for module in modules}
    # Those that import nothing that is left are in no circle.
    while free := {module for module, imported in imported_by.items() if not imported & imported_by.keys()}:
        for module in free:
            del imported_by[module]
    assert not sorted(imported_by)


@pytest.mark.parametrize(
    ("packages", "allowed"),
    [(TENSORFLOW, MAY_IMPORT_TENSORFLOW), (["ray"], MAY_IMPORT_RAY)],
    ids=["tensorflow", "ray"],
)
def test_only_some_rooms_import_a_heavy_package(graph, packages, allowed):
    importing = modules_importing(graph, packages)
    assert importing
    assert not {module for module in importing if not any(fnmatch(module, pattern) for pattern in allowed)}


def test_the_proof_of_an_export_does_without_keras(graph):
    """Each process that the proof forks would import it for 3 seconds."""
    assert "tensorflow" in graph.find_upstream_modules("transfer.registry.export_proof")
    assert not graph.find_shortest_chain("transfer.registry.export_proof", "keras")

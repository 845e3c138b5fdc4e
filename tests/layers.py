"""The three layers of the tests: which one a test is in, what it may do there, and how long it may take.

`unit`: one process, nothing started, nothing waited for. `system`: real processes, an S3 service, a Ray cluster.
`proof`: kills, races, damage, several machines, and all cases of what `unit` shows in one or two. The folder decides;
a test below `unit/` is of `system` with those of its parameters that need an S3 service. A mark at the test goes before
that: of a layer, or `thorough`, which is none of them.
"""

from __future__ import annotations

import _posixsubprocess
import os
import sys
import tomllib
from collections import defaultdict
from pathlib import Path, PurePosixPath

import pytest

FOLDER = Path(__file__).parent
LAYERS = ("unit", "system", "proof")
# What is stored here is the subject of the tests. Elsewhere S3 is only where things happen to lie, and the emulator is
# enough. It is, too, for which versions are kept: that is reckoned from documents, whatever they were read from. Only
# `make chaos` kills workers on a real service.
ROOMS_OF_STORED_THINGS = {"storage", "dataset", "registry", "nights", "proof"}
NOT_ABOUT_STORING = {"test_retention.py", "test_clocks_and_credentials.py", "test_nodes.py"}
# These start Ray clusters, one a folder or file. Ray Train looks for its cluster on the machine, and stumbles over two.
ON_CLUSTERS = {"on_ray", "jobs", "test_secrets.py"}


def pytest_itemcollected(item):
    """Mark a test with its layer, and with `s3` if it tells something about an S3 service."""
    folder = item.path.parent.name
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    uses_s3 = "s3_server" in item.fixturenames or parameters.get("storage") == "s3"
    layer = next((mark for mark in (*LAYERS, "thorough") if item.get_closest_marker(mark)), None)
    if layer is None:
        layer = item.path.relative_to(FOLDER).parts[0]
        layer = "system" if layer == "unit" and uses_s3 else layer
        item.add_marker(layer)
    item.user_properties.append(("layer", layer))
    if uses_s3 and folder in ROOMS_OF_STORED_THINGS and item.path.name not in NOT_ABOUT_STORING:
        item.add_marker("s3")


def pytest_collection_modifyitems(items):
    """First what runs on clusters, one cluster after the other."""
    items.sort(key=lambda item: not ON_CLUSTERS & {item.path.parent.name, item.path.name})


def pytest_xdist_make_scheduler(config, log):
    """Run in one process, one after the other, the tests of a file, which share what is made for it, or on clusters."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFileOrClusters(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = PurePosixPath(nodeid.partition("::")[0])
            return "clusters" if ON_CLUSTERS & {file.parent.name, file.name} else str(file)

    config.option.loadscopereorder = False
    return ByFileOrClusters(config, log)


# What libraries ask the machine, in milliseconds.
HARMLESS = {"fc-list", "grep", "lscpu", "uname"}
STARTS_A_PROCESS = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"}
_at_work: list[str] = []


def _refuse(event, arguments):
    if not _at_work or event not in STARTS_A_PROCESS:
        return
    # A fork names no program, and of a command in one text only the whole is told.
    program = next(iter(arguments), None) or ""
    if Path(os.fsdecode(program)).name not in HARMLESS:
        pytest.fail(f"{_at_work[0]} starts a process ({event}): its place is below tests/system.")


def _refuse_or_start(*arguments, fork_exec=_posixsubprocess.fork_exec):
    # This is how multiprocessing starts them, of which nobody is told.
    _refuse("os.spawn", ["multiprocessing"])
    return fork_exec(*arguments)


sys.addaudithook(_refuse)
_posixsubprocess.fork_exec = _refuse_or_start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Refuse processes while a unit test runs."""
    if item.get_closest_marker("unit"):
        _at_work.append(item.nodeid)
    try:
        return (yield)
    finally:
        _at_work.clear()


def pytest_terminal_summary(terminalreporter):
    """Say which layers and tests took longer than budget.toml gives them. Nothing fails: machines differ."""
    budget = tomllib.loads((FOLDER / "budget.toml").read_text())
    seconds = {layer: defaultdict(float) for layer in budget}
    for report in (each for reports in terminalreporter.stats.values() for each in reports):
        # What was deselected is there as the test itself.
        layer = dict(report.user_properties)["layer"] if isinstance(report, pytest.TestReport) else None
        if layer in budget:
            seconds[layer][report.nodeid] += report.duration
    lines = []
    for layer, tests in seconds.items():
        of_layer, of_test = budget[layer]["layer"], budget[layer]["test"]
        if sum(tests.values()) > of_layer:
            lines.append(f"{layer}: {sum(tests.values()):.0f} s of {of_layer}")
        lines += [f"{test}: {taken:.1f} s of {of_test}" for test, taken in tests.items() if taken > of_test]
    if lines:
        terminalreporter.section("slower than tests/budget.toml", yellow=True)
        for line in lines:
            terminalreporter.line(line)

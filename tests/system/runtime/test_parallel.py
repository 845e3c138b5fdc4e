"""Mapping over processes: order, bounds, errors, deaths."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from transfer.errors import DatasetError
from transfer.runtime.parallel import (
    IMAGES_PER_PROCESS,
    SIZE_BYTES_PER_PROCESS,
    parallel_map,
    process_count,
    run_in_process,
)


def act(item):
    """Do what the item says; runs in a worker, where this module is imported again."""
    match item:
        case "raise":
            raise DatasetError("It went wrong.", advice="Mend it.")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "environment":
            return os.environ["CUDA_VISIBLE_DEVICES"]
        case "pid":
            return os.getpid()
    return item * 2


def counted(items, drawn):
    for item in items:
        drawn.append(item)
        yield item


@pytest.mark.parametrize("processes", [1, 2])
def test_answers_come_in_the_order_of_the_items(processes):
    assert list(parallel_map(act, range(50), processes=processes)) == [item * 2 for item in range(50)]


@pytest.mark.parametrize("processes", [1, 2])
def test_items_are_drawn_only_a_little_ahead(processes):
    drawn = []
    answers = parallel_map(act, counted(range(1000), drawn), processes=processes)
    for number in range(10):
        assert next(answers) == number * 2
        assert len(drawn) <= number + 1 + 4
    answers.close()
    assert len(drawn) < 20


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_the_function_arrives_as_it_was_raised(processes):
    with pytest.raises(DatasetError, match="It went wrong") as caught:
        list(parallel_map(act, [1, "raise", 2], processes=processes))
    assert caught.value.advice == "Mend it."


def test_one_process_is_this_one():
    assert list(parallel_map(act, ["pid"], processes=1)) == [os.getpid()]
    assert run_in_process(act, "pid") != os.getpid()


def test_a_worker_that_dies_is_a_clear_error():
    with pytest.raises(DatasetError, match="worker process ended abruptly") as caught:
        list(parallel_map(act, [1, 2, "die", *range(20)], processes=2))
    assert "out of memory" in caught.value.advice


def test_workers_see_no_gpu():
    assert run_in_process(act, "environment") == "-1"
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != "-1"


def test_few_images_are_not_worth_another_process():
    few = {"images": IMAGES_PER_PROCESS, "size_bytes": SIZE_BYTES_PER_PROCESS}
    assert process_count(0, size_bytes=0) == process_count(**few) == 1
    assert 1 <= process_count(10**9, size_bytes=0) == process_count(1, size_bytes=10**12) <= os.cpu_count()


def test_workers_end_when_their_parent_is_killed(tmp_path):
    """The orphans' pids come through a pipe that closes when the last of them is gone."""
    (tmp_path / "orphans_work.py").write_text(
        textwrap.dedent("""
            import multiprocessing, os, signal

            def work(item):
                if item == 5:
                    os.kill(multiprocessing.parent_process().pid, signal.SIGKILL)
                print(item, flush=True)
                return item
        """)
    )
    (tmp_path / "orphans.py").write_text(
        "from orphans_work import work\n"
        "from transfer.runtime.parallel import parallel_map\n"
        "list(parallel_map(work, range(1000), processes=2))\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "orphans.py"], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL

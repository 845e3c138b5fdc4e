"""Work that is started a little ahead of its results."""

import pytest

from transfer.runtime.parallel import in_order


def recorded(count, log):
    for number in range(count):
        log.append(f"start {number}")
        yield number


@pytest.mark.parametrize("most", [1, 2, 5])
def test_results_come_in_the_order_in_which_the_work_was_started(most):
    results = in_order(range(7), str, is_full=lambda waiting: len(waiting) >= most)
    assert list(results) == [str(number) for number in range(7)]


def test_no_more_is_started_than_the_reader_of_the_results_makes_room_for():
    log = []
    results = in_order(recorded(4, log), int, is_full=lambda waiting: len(waiting) > 1)
    log.extend(f"result {number}" for number in results)
    assert log == ["start 0", "start 1", "result 0", "start 2", "result 1", "start 3", "result 2", "result 3"]


def test_work_without_end_can_be_left():
    log = []
    results = in_order(recorded(10**9, log), int, is_full=lambda waiting: len(waiting) > 2)
    assert next(results) == 0
    results.close()
    assert len(log) == 3

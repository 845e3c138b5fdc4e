"""What long work shows in a log. A bar on a terminal shows the same figures."""

import pytest

from transfer.runtime.progress import progress


@pytest.mark.parametrize(("total", "stays", "lines"), [(3, True, 1), (None, True, 1), (0, True, 0), (3, False, 0)])
def test_what_stays_is_a_line_and_nothing_is_said_of_no_work(capsys, total, stays, lines):
    with progress("check", total=total, stays=stays) as advance:
        advance(total or 0)
    assert len(capsys.readouterr().err.splitlines()) == lines

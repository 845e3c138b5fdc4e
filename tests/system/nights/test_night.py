"""A night from end to end. Two weeks of them are in tests/proof/test_fortnight.py."""

import transfer
from tests.fortnight import Fortnight


def test_the_first_night_promotes_a_model_and_the_next_finds_nothing_new(tmp_path):
    it = Fortnight(tmp_path)
    it.add(range(8), slice(0, 12))
    first = it.night()
    assert (first.outcome, first.champion, first.challenger, it.serving) == ("promoted", None, 1, 1)

    empty = it.night()
    assert (empty.outcome, empty.night, empty.run) == ("nothing new", 2, None)
    assert {step.name for step in empty.steps} == {"ingest"}
    # In Python the same.
    assert [transfer.nightly(it.file(it.config())).outcome for _ in range(2)] == ["nothing new"] * 2
    assert it.command("--json") == 0
    assert it.command("--tell-apart") == 13

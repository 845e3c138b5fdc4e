"""What a sweep shows while it runs, on a terminal and in a log."""

import io
import re

from rich.console import Console

from tests.runs import failed, trial
from transfer.tuning.live_table import TrialTable

ROW = trial(1).rows[0]


def shown(table, height=40, width=100):
    """The table as a terminal of this size would show it, line by line."""
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(table.rendered(height=height, width=width))
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_off_a_terminal_each_trial_that_ends_is_a_line(capsys):
    with TrialTable("accuracy", total=3) as table:
        table.started(1, {"phases.0.learning_rate": 1e-4})
        table.epoch(1, ROW, 0.4)
        table.ended(trial(1, value=0.5))
        table.ended(failed(2, reason="out of\nmemory"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "trial 1/3: phases.0.learning_rate=0.0001: accuracy 50.0 %, finished, 3 epochs, 6.0 s, best so far",
        "trial 2/3: phases.0.learning_rate=0.01: failed (out of memory), 0 epochs, 0.0 s",
    ]


def test_the_best_is_first_and_marked_then_what_runs_then_the_rest_by_value():
    table = TrialTable("accuracy")
    for number, value in ((1, 0.5), (2, 0.9), (3, 0.7)):
        table.ended(trial(number, value=value))
    table.ended(failed(4))
    for number in (5, 6):
        table.started(number, {"phases.0.learning_rate": 1.0})
    table.epoch(6, ROW, 0.95)
    lines = shown(table)
    assert [int(re.match(r"\s*(?:★ )?(\d+)", line)[1]) for line in lines[1:-1]] == [2, 5, 6, 3, 1, 4]
    assert lines[1].lstrip().startswith("★ 2")
    assert sum("★" in line for line in lines) == 1
    assert "4 trials ended, 2 running" in lines[-1]


def test_what_would_win_is_the_best(capsys):
    with TrialTable("accuracy") as table:
        table.ended(trial(1, value=0.1))
        table.ended(trial(2, value=0.95, status="stopped", stopped_by="scheduler", reason="by asha"))
        table.ended(trial(3, value=0.9, status="stopped", stopped_by="target", reason="trial 3 reached the target"))
    said = capsys.readouterr().err.splitlines()
    assert ["best so far" in line for line in said] == [True, False, True]
    assert "★ 3" in shown(table)[1]


def test_the_lowest_loss_is_the_best():
    table = TrialTable("loss")
    for number, value in ((1, 0.5), (2, 0.1), (3, 0.7)):
        table.ended(trial(number, value=value))
    assert "★ 2" in shown(table)[1]


def test_the_table_is_never_higher_than_the_terminal():
    table = TrialTable("accuracy", total=200)
    for number in range(1, 151):
        table.ended(trial(number, value=number / 200))
    table.started(151, {})
    lines = shown(table, height=12)
    assert len(lines) <= 12
    assert "★ 150" in lines[1]
    assert "151" in lines[2]
    assert "150 of 200 trials ended, 1 running; 143 more are not shown" in lines[-1]


def test_on_a_narrow_terminal_values_give_way_to_what_came_out():
    table = TrialTable("accuracy")
    keys = [f"head.a_rather_long_name_{index}" for index in range(6)]
    for number in range(1, 4):
        table.ended(trial(number, dict.fromkeys(keys, 0.123456), value=0.1 * number))
    for width in (100, 80, 70):
        lines = shown(table, width=width)
        assert max(map(len, lines)) <= width
        assert "30.0 %  finished      6.0" in lines[1].replace(" ", " ")


def test_a_trial_that_is_started_again_counts_anew():
    table = TrialTable("accuracy")
    table.started(1, {"a": 1})
    table.epoch(1, ROW, 0.4)
    table.epoch(1, ROW, 0.5)
    table.started(1, {"a": 1})
    table.epoch(1, ROW, 0.4)
    line = shown(table)[1].split()
    assert line == ["1", "1", "1", "40.0", "%", "running", "2.0"]


def test_values_and_reasons_are_text_not_markup():
    table = TrialTable("accuracy")
    table.ended(failed(1, {"a.[b]": "[red]x[/]"}, reason="[bold]no[/bold]"))
    assert "[red]x[/]" in "".join(shown(table))
    assert "[bold]no[/bold]" in "".join(shown(table))

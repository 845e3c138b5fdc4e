"""Answers for people: nothing of what users wrote is lost."""

import io

from transfer.cli.output import show


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(answer, stream=io.StringIO):
    said = stream()
    show(answer, said)
    return said.getvalue()


def test_brackets_are_no_markup():
    said = shown({"path": "cats/[old]/1.jpg", "rows": [{"reason": "as in [/wiki/v2]", "path": "cats/[old]/1.jpg"}]})
    assert said.count("cats/[old]/1.jpg") == 2
    assert "as in [/wiki/v2]" in said


def test_rows_are_whole_also_where_a_terminal_is_narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    run = "pets-c39f0123456789abcdef-0123456789"
    said = shown({"rows": [{"run": run, "dataset": "pets/00000001"}]}, Terminal)
    assert "…" not in said
    columns = [line.split() for line in said.splitlines()[1:]]
    assert "".join(row[0] for row in columns) == run


def test_off_a_terminal_a_row_is_a_line():
    path = "a" * 300
    assert path in shown({"rows": [{"path": path}]})


def test_an_empty_list_is_said_to_be_none_and_what_is_not_known_is_left_out():
    assert shown({"versions": [], "model": None}) == "versions  none\n"


def test_a_cell_of_what_is_not_known_has_a_dash():
    assert shown({"phases": [{"trains": "head", "parameters": None}]}).split()[-2:] == ["head", "-"]

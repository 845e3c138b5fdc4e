"""What a webhook is told of a night, over HTTP on loopback, and what a terminal shows."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.contenders import changed, night
from transfer.config import GateConfig, NightlyConfig
from transfer.nights.message import for_people, message_of, send
from transfer.nights.summary import ClassChange
from transfer.registry.promote import Serving
from transfer.registry.versions import Promotion

VARIABLE = "WEBHOOK_OF_THE_TESTS"


class Receiver(HTTPServer):
    """Answers with the statuses that it is given, one after the other, then 200."""

    def __init__(self, *statuses):
        self.statuses, self.received = list(statuses), []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/a-secret-path"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.headers["Content-Type"], json.loads(body)))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receive(monkeypatch):
    servers = []

    def start(*statuses):
        server = Receiver(*statuses)
        servers.append(server)
        monkeypatch.setenv(VARIABLE, server.url)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def sent(told):
    send(told, NightlyConfig(webhook_env=VARIABLE))


def test_a_webhook_is_told_the_figures_that_people_ask_for_first(receive):
    receiver = receive()
    summary = night("promoted")
    told = message_of(summary, page="file:///page.html")
    sent(told)
    [(kind, received)] = receiver.received
    assert kind == "application/json"
    assert received == json.loads(json.dumps(told))
    assert (received["outcome"], received["night"]) == ("promoted", summary.night)
    assert received["accuracy"]["challenger"] == summary.comparison.challenger.metrics.accuracy
    assert received["images"]["new"] == summary.change.new
    assert received["seconds"] == {step.name: step.seconds for step in summary.steps}
    # A matrix of a thousand classes is not for a chat.
    assert "confusion" not in json.dumps(received)


def test_a_night_without_a_comparison_is_told_as_well(receive):
    receiver = receive()
    sent(message_of(night("nothing new"), page=None))
    assert receiver.received[0][1]["accuracy"] is None


def test_a_webhook_that_fails_for_a_moment_is_tried_again(receive):
    receiver = receive(503)
    sent({"night": 1})
    assert [body for _, body in receiver.received] == [{"night": 1}] * 2


def test_a_webhook_that_fails_is_logged_without_its_url_and_fails_nothing(receive, caplog):
    receiver = receive(500, 500, 500)
    with caplog.at_level(logging.WARNING):
        sent({"night": 1})
    assert len(receiver.received) == 3
    assert caplog.messages == [f"The webhook in {VARIABLE} did not take the night: HTTPError."]
    assert "a-secret-path" not in caplog.text


@pytest.mark.parametrize("value", ["", "ftp://somewhere", "file:///etc/passwd"])
def test_nothing_but_an_http_address_is_sent_to(monkeypatch, caplog, value):
    monkeypatch.setenv(VARIABLE, value)
    with caplog.at_level(logging.WARNING):
        sent({"night": 1})
    assert caplog.messages == [f"Nothing was sent: the environment variable {VARIABLE} holds no http(s) URL."]


def test_nothing_is_sent_unless_a_variable_is_named(receive):
    receiver = receive()
    send({"night": 1}, NightlyConfig())
    assert receiver.received == []


SERVING = Serving(6, Promotion(version=9, since="2026-02-01", reason="night 2", replaces=4), 4)


def lines_of(summary, serving=SERVING):
    lines = for_people(summary, serving=serving, page="page.html")
    return {name: text.replace(" ", " ") for name, text in lines.items() if text}


def test_a_terminal_gets_what_serves_once_and_the_numbers_that_were_decided_by():
    lines = lines_of(night("kept", gate=GateConfig(min_accuracy=0.99)))
    assert lines.pop("accuracy").startswith("86.7 % on 60 held-out images, the champion's is 71.7 %: +15.0 points (")
    assert lines == {
        "night": "14 of flowers",
        "outcome": "kept",
        "why": "Because it was kept.",
        "new version": "12, of run run-12",
        "what serves": "Version 9 serves since 2026-02-01, instead of version 4.",
        "data": "flowers/00000003: 335 images, 15 new, 1 gone",
        "refused": "2 files refused.",
        "checks": "1 of 2 passed, 1 skipped; warn: drift",
        "gate": "5 of 6 rules passed; failed: min_accuracy",
        "took": "1 min 6 s, most of it: train 1 min 2 s, ingest 4.2 s, compare models 0.0 s",
        "page": "page.html",
    }


def test_a_terminal_gets_nothing_of_what_is_not_known_and_an_error_of_several_lines_as_one():
    lines = lines_of(night("failed", reason="First.\n  Second.", dataset=None, steps=()), Serving(0, None, None))
    assert lines == {
        "night": "14 of flowers",
        "outcome": "failed",
        "why": "First. Second.",
        "what serves": "Nothing serves.",
        "took": "0.0 s",
        "page": "page.html",
    }


def test_other_settings_than_the_champions_have_one_line_however_many_there_are():
    keys = [f"phases[{index}].epochs" for index in range(7)]
    assert lines_of(night("kept", other_settings=tuple(keys)))["settings"] == (
        "The night trains with the file's settings; the champion was trained with other values of "
        f"{', '.join(keys[:5])} and 2 more."
    )


def test_new_classes_and_refused_files_have_a_line_each():
    fern = ClassChange(name="fern", before=0, new=12, gone=0)
    refused = {"rejected": 1, "rejects": {"unreadable": 1}, "ledger": "rejects/ab.parquet"}
    change = changed()
    change = change.model_copy(update={"classes": [*change.classes, fern], **refused})
    lines = lines_of(night("refused", change=change))
    assert lines["new classes"] == "fern (12 images)"
    assert lines["refused"] == "1 file refused: 1 unreadable; listed in rejects/ab.parquet."
    first = change.model_copy(update={"before": None})
    assert "new classes" not in lines_of(night("refused", change=first)), "all are new to a first model"

"""What a webhook is told of a night, over HTTP on loopback."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.unit.nightly.contenders import night
from transfer.config import NightlyConfig
from transfer.nightly.digest import digest_of, send

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
    told = digest_of(summary, page="file:///page.html")
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
    sent(digest_of(night("nothing new"), page=None))
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

"""The script of the nightly CronJob, against an HTTP server that answers as Kubernetes' API does."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "cluster" / "kubernetes" / "components" / "cronjob" / "start_night.py"
JOBS = "/apis/ray.io/v1/namespaces/nights/rayjobs"
TEMPLATE = {"metadata": {"name": "transfer"}, "spec": {"suspend": True, "entrypoint": "python -m jobs.train c.yaml"}}


class Api(BaseHTTPRequestHandler):
    """Keeps objects by name; a new one goes through the statuses of `ends`, one each time it is read."""

    def do_GET(self):
        name = self.path.removeprefix(f"{JOBS}/")
        if self.headers["Authorization"] != "Bearer token-of-the-pod":
            self.answer(401, {})
        elif name not in self.server.objects:
            self.answer(404, {})
        else:
            found = self.server.objects[name]
            if name != "transfer" and self.server.ends:
                found["status"] = self.server.ends.pop(0)
            code = found.get("status", {}).get("code", 200)
            self.answer(code, found)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["metadata"]["name"]
        self.server.posted += 1
        taken = name in self.server.objects
        self.server.objects.setdefault(name, body)
        self.answer(409 if taken else 201, body)

    def answer(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        """Nothing: the tests read what the script says."""


@pytest.fixture
def api():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.objects, server.ends, server.posted = {"transfer": json.loads(json.dumps(TEMPLATE))}, [], 0
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run(api, tmp_path):
    (tmp_path / "token").write_text("token-of-the-pod")
    (tmp_path / "namespace").write_text("nights")
    places = {"ACCOUNT": str(tmp_path), "API": f"http://127.0.0.1:{api.server_port}", "POLL_S": "0.05"}
    command = [sys.executable, SCRIPT, "transfer"]
    return lambda: subprocess.run(
        command, env=os.environ | places, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_night_is_a_copy_that_is_not_suspended_and_it_is_watched_to_its_end(api, run):
    running = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    api.ends = [{}, running, running, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
    finished = run()
    assert finished.returncode == 0, finished.stderr
    (night,) = [each for name, each in api.objects.items() if name != "transfer"]
    assert night["spec"] == TEMPLATE["spec"] | {"suspend": False}
    assert api.objects["transfer"] == TEMPLATE
    assert finished.stdout.count("Running RUNNING") == 1
    assert "token-of-the-pod" not in finished.stdout + finished.stderr


def test_a_second_start_on_a_day_watches_the_first_ones_job(api, run):
    api.ends = [{"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
    assert [run().returncode, run().returncode] == [0, 0]
    assert (api.posted, len(api.objects)) == (2, 2)


@pytest.mark.parametrize("end", [("Failed", "FAILED"), ("Complete", "STOPPED"), ("Failed", "")])
def test_a_night_that_did_not_succeed_fails_the_pod(api, run, end):
    api.ends = [{"jobDeploymentStatus": end[0], "jobStatus": end[1]}]
    assert run().returncode == 1


def test_an_api_that_is_away_for_a_moment_is_asked_again(api, run):
    api.ends = [{"code": 503}, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
    finished = run()
    assert finished.returncode == 0
    assert "answered 503" in finished.stdout

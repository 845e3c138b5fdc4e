"""Run a RayJob like the suspended one of this name, once a day, and watch it until it ends.

    python start_night.py transfer

Talks to the Kubernetes API as the pod's own service account, with Python's standard library alone. The day is part of
the new RayJob's name, so a second start on a day finds the first one's. Exit code: 0 succeeded, 1 not.
"""

import datetime as dt
import json
import os
import pathlib
import ssl
import sys
import time
import urllib.error
import urllib.request
from typing import Any

# Where every pod finds them; the tests have others.
ACCOUNT = pathlib.Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
API = os.environ.get("API", "https://kubernetes.default.svc")
POLL_S = float(os.environ.get("POLL_S", "30"))


def call(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The API's answer."""
    # Read each time: Kubernetes renews the token in place.
    headers = {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}", "Content-Type": "application/json"}
    trusted = ssl.create_default_context(cafile=ACCOUNT / "ca.crt") if API.startswith("https:") else None
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"{API}{path}", method=method, data=data, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, context=trusted, timeout=60) as answer:  # noqa: S310 - API is ours
        return json.load(answer)


def start(jobs: str, name: str, night: str) -> None:
    """Make the night's RayJob from the one of this name, unless it is there."""
    template = call("GET", f"{jobs}/{name}")
    metadata = {"name": night, "labels": template["metadata"].get("labels", {})}
    spec = template["spec"] | {"suspend": False}
    try:
        call("POST", jobs, {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec})
        print(f"{night} is made.", flush=True)
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise
        print(f"{night} is there.", flush=True)


def watch(jobs: str, night: str) -> bool:
    """Whether the night's RayJob succeeded, when it has ended."""
    said = None
    while True:
        try:
            status = call("GET", f"{jobs}/{night}").get("status", {})
        except urllib.error.HTTPError as error:
            if error.code == 404:
                print(f"{night} was removed.", flush=True)
                return False
            status = {"message": f"the API answered {error.code}"}
        except OSError as error:
            status = {"message": f"the API does not answer: {error}"}
        deployment, job = status.get("jobDeploymentStatus"), status.get("jobStatus")
        if (line := f"{deployment} {job} {status.get('message', '')}") != said:
            print(line, flush=True)
            said = line
        if deployment in {"Complete", "Failed"}:
            return deployment == "Complete" and job == "SUCCEEDED"
        time.sleep(POLL_S)


def main() -> int:
    """Start and watch."""
    name = sys.argv[1]
    namespace = (ACCOUNT / "namespace").read_text()
    jobs = f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    night = f"{name}-{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    start(jobs, name, night)
    return 0 if watch(jobs, night) else 1


if __name__ == "__main__":
    sys.exit(main())

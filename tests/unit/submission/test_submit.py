"""`transfer submit` where a cluster has just started."""

import pytest

from transfer.errors import ClusterError
from transfer.submission import submit
from transfer.submission.working_tree import Package


class Starting:
    """A cluster that cannot start jobs yet; after `refusals` of them, it can."""

    def __init__(self, refusals, answer):
        self.refusals, self.answer = refusals, answer

    def list_jobs(self):
        return []

    def submit_job(self, **_):
        if self.refusals:
            self.refusals -= 1
            raise RuntimeError(self.answer)


@pytest.fixture
def ship(monkeypatch, tmp_path):
    monkeypatch.setattr(submit, "_PAUSE_S", 0.0)
    package = Package(path=tmp_path, config="c.yaml", files=1, size_bytes=1, sha256="0")
    return lambda client: submit._submit_once(client, "train", "true", package)


def test_a_cluster_that_has_just_started_is_waited_for(ship):
    client = Starting(9, "status code 500: No available agent to submit job, please try again later.")
    assert ship(client) == ("train-1", False)


def test_another_refusal_ends_after_three_times(ship):
    with pytest.raises(ClusterError, match="did not take the job train-1"):
        ship(Starting(3, "status code 500"))

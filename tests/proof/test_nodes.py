"""Jobs on a cluster of several machines, data in S3: what they leave behind, also when a machine dies."""

import json
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import boto3
import numpy as np
import pytest
from PIL import Image

from tests.digits import digits_config, ingest_some_digits, write_some_digits
from tests.nodes import Nodes, may_isolate
from tests.trained import largest_difference, trained_in_one_process
from transfer.config import load_config
from transfer.config.reference import render
from transfer.dataset.manifest import load_dataset
from transfer.dataset.row_groups import ROW_GROUP_SIZE_BYTES
from transfer.demo import BASE_PATH
from transfer.errors import ClusterError, TrainingError
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import load_run, open_run

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def cluster(s3_server, tmp_path_factory):
    """A head and no nodes; it finds credentials for S3 in its environment, as of an instance profile."""
    with Nodes(tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


@pytest.fixture
def nodes(cluster):
    """The cluster with two nodes, whatever became of those that it had."""
    cluster.join(2)
    return cluster


def bucket_of(s3_server, *files):
    """A new bucket with some files, by their names."""
    bucket = f"bucket-{uuid.uuid4().hex}"
    client = boto3.Session().client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket=bucket)
    for file in files:
        client.put_object(Bucket=bucket, Key=file.name, Body=file.read_bytes())
    client.close()
    return bucket


@pytest.fixture(scope="module")
def digits(cluster, s3_server, tmp_path_factory):
    """A configuration, as the cluster reads it: images, base and storage are in a bucket."""
    folder = tmp_path_factory.mktemp("digits")
    archive = shutil.make_archive(str(folder / "digits"), "zip", write_some_digits(folder / "images"))
    bucket = bucket_of(s3_server, Path(archive), BASE_PATH)
    config = digits_config(
        f"s3://{bucket}/digits.zip",
        {"uri": f"s3://{bucket}/transfer", "endpoint_url": cluster.reach(s3_server)},
        base={"model": f"s3://{bucket}/{BASE_PATH.name}", "image_size": 32},
        features="never",
        workers={"count": 2, "max_failures": 1},
        publish={"enabled": False, "parity_images": 8},
        # Trials with different batches are not trained as one.
        sweep={"space": {"training.batch_size": [16, 32], "phases.0.learning_rate": [1e-3, 1e-2]}, "search": "grid"},
    )
    path = folder / "config.yaml"
    path.write_text(render(config))
    return path


class Job:
    """A submitted job that goes on."""

    def __init__(self, cluster, log, name, config, *arguments):
        self._log = log
        command = [sys.executable, "-m", "transfer", "submit", name, str(config), "--working-dir", str(ROOT)]
        with log.open("w") as errors:
            self._process = cluster.command(
                [*command, "--", "--json", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors
            )

    @property
    def log(self):
        return self._log.read_text()

    def wait_until(self, is_so):
        while not is_so():
            assert self._process.poll() is None, self.log[-5000:]
            time.sleep(0.2)

    def end(self):
        """The exit code."""
        return self._process.wait()

    def kill(self):
        """End the command that follows the job."""
        self._process.kill()
        self._process.wait()

    def answer(self):
        """What it says in the end, when it succeeds."""
        assert self.end() == 0, self.log[-5000:]
        return json.loads(next(line for line in self.log.splitlines() if line.startswith("{")))


@pytest.fixture
def submit(cluster, tmp_path):
    """Begins a job."""
    begun = []

    def begin(name, *arguments):
        begun.append(Job(cluster, tmp_path / f"{name}.log", name, *arguments))
        return begun[-1]

    yield begin
    for job in begun:
        job.kill()


@pytest.fixture(scope="module")
def storage_here(s3_server, tmp_path_factory):
    """What is different where this host reads the configuration."""
    return [f"storage.endpoint_url={s3_server}", f"storage.cache_folder={tmp_path_factory.mktemp('cache')}"]


@pytest.fixture(scope="module")
def here(digits, storage_here):
    """The configuration as this host reads it."""
    return load_config(digits, storage_here)


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory):
    """Final weights of the run trained from pixels in this process, without Ray."""
    folder = tmp_path_factory.mktemp("one-process")
    source, dataset = ingest_some_digits(folder)
    config = digits_config(source, str(folder / "storage"), features="never")
    return trained_in_one_process(open_run(open_store(config.storage), config, dataset)).weights


def run_of(here, run_id):
    return load_run(open_store(here.storage), run_id, here)


def final(here, run_id):
    return Checkpoints(run_of(here, run_id)).complete()


def runs(here):
    """Ids of the runs that have begun."""
    return {item.name.split("/")[1] for item in open_store(here.storage).list("runs/")}


def steps_of(here, run_id):
    """Steps that checkpoints know of; none where the run has not begun."""
    store = open_store(here.storage)
    if not store.exists(f"runs/{run_id}/run.json"):
        return 0
    latest = load_run(store, run_id, here).checkpoints.latest()
    return latest[1]["progress"]["global_step"] if latest else 0


def test_without_nodes_a_job_ends_in_time_and_says_what_it_needs(submit, cluster, digits):
    for node in list(cluster.nodes):
        cluster.kill(node)
    job = submit("train", digits, "--set", "workers.start_timeout_s=3")
    assert job.end() == ClusterError.exit_code, job.log
    assert "could not start a worker in 3 s" in job.log
    assert "Traceback" not in job.log


def test_a_night_one_of_whose_nodes_dies_trains_on_another_what_one_process_does(
    submit, nodes, digits, here, in_one_process
):
    job = submit("nightly", digits, "--set", "publish.enabled=true", "--set", "training.checkpoint_steps=1")
    job.wait_until(lambda: any(steps_of(here, run_id) >= 3 for run_id in runs(here)))
    # Each node has room for one of the two workers, so the one that joins must take the place of the one that dies.
    nodes.kill(nodes.nodes[0])
    nodes.join(2)
    answer = job.answer()
    assert answer["outcome"] == "promoted"
    ended = final(here, answer["run"])
    assert largest_difference(ended.weights, in_one_process) < TOLERANCE
    assert [row.epoch for row in ended.progress.history] == [0, 1, 2]


@pytest.mark.thorough
def test_a_sweep_has_its_hosts_on_the_nodes(submit, nodes, digits):
    head_only = "phases=[{unfreeze: 0, epochs: 2, learning_rate: 1.0e-3}]"
    # The head has no CPU for them.
    job = submit("sweep", digits, "--set", "workers.count=1", "--set", head_only)
    assert job.answer()["trials"] == {"finished": 4, "stopped": 0, "failed": 0}


@pytest.mark.thorough
def test_where_no_other_node_joins_the_job_ends_in_time_and_says_what_it_needs(submit, nodes, digits, here):
    settings = ["training.checkpoint_steps=1", "workers.start_timeout_s=10"]
    job = submit("train", digits, "--run-id", "alone", *(part for each in settings for part in ("--set", each)))
    job.wait_until(lambda: steps_of(here, "alone") >= 3)
    nodes.kill(nodes.nodes[0])
    assert job.end() == TrainingError.exit_code, job.log[-5000:]
    assert "It needs 2 workers of 1 CPU" in job.log


# What is measured on a larger dataset: four machines, and lanes, because the split exceeds the shuffle window.

IMAGES = 1200
EPOCHS = 2
OTHER_BYTES = 1024**2
"""What a worker receives besides images: the network, documents, the code of the job."""


@pytest.fixture(scope="module")
def noise(cluster, s3_server, tmp_path_factory):
    """A configuration of 60 MB of images that cannot be compressed, and the path of its file for the cluster."""
    folder = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    for index in range(IMAGES):
        path = folder / "images" / f"class-{index % 3}" / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (128, 128, 3), np.uint8)).save(path, compress_level=1)
    archive = Path(shutil.make_archive(str(folder / "noise"), "zip", folder / "images"))
    bucket = bucket_of(s3_server, archive, BASE_PATH)
    config = digits_config(
        f"s3://{bucket}/{archive.name}",
        {"uri": f"s3://{bucket}/transfer", "endpoint_url": cluster.reach(s3_server)},
        base={"model": f"s3://{bucket}/{BASE_PATH.name}", "image_size": 32},
        dataset={"source": f"s3://{bucket}/{archive.name}", "validation": 0.05, "test": 0.05},
        features="never",
        # Adam would turn the rounding of gradients near 0 into steps.
        phases=[{"unfreeze": 1, "epochs": EPOCHS, "learning_rate": 1e-2, "optimizer": "sgd"}],
        training={"batch_size": 32, "shuffle_window_bytes": 16 * 1024**2},
        workers={"count": 4, "max_failures": 2},
        publish={"enabled": False, "parity_images": 8},
    )
    path = folder / "config.yaml"
    path.write_text(render(config))
    return path


@pytest.mark.thorough
@pytest.mark.skipif(not may_isolate(), reason="the bytes of a machine are counted by its address")
def test_four_machines_receive_a_quarter_each_and_train_as_one_process_also_when_one_goes_and_one_comes(
    submit, cluster, noise, storage_here
):
    cluster.join(4)
    here = load_config(noise, storage_here)
    ingested = submit("ingest", noise)
    assert ingested.end() == 0, ingested.log[-5000:]
    store = open_store(here.storage)
    dataset = load_dataset(store, here.name)
    size = {split: sum(shard.size_bytes for shard in dataset.shards_of(split)) for split in ("train", "validation")}
    assert size["train"] > 3 * here.training.shuffle_window_bytes
    alone = trained_in_one_process(open_run(store, here, dataset, run_id="alone")).weights

    before = [cluster.answered(node) for node in cluster.nodes]
    job = submit("train", noise, "--run-id", "quiet")
    job.wait_until(lambda: f"epoch {EPOCHS}/{EPOCHS}" in job.log)
    received = [cluster.answered(node) - earlier for node, earlier in zip(cluster.nodes, before, strict=True)]
    job.answer()
    assert largest_difference(final(here, "quiet").weights, alone) < TOLERANCE
    # Two row groups of an epoch are shared with the workers beside it.
    share = size["train"] / 4 + 2 * ROW_GROUP_SIZE_BYTES + size["validation"]
    assert max(received) <= EPOCHS * share + OTHER_BYTES, received

    job = submit("train", noise, "--run-id", "disturbed", "--set", "training.checkpoint_steps=1")
    job.wait_until(lambda: steps_of(here, "disturbed") >= 3)
    cluster.kill(cluster.nodes[0])
    cluster.join(4)
    job.answer()
    assert largest_difference(final(here, "disturbed").weights, alone) < TOLERANCE

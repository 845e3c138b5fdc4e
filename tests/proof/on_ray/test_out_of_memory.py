"""Training on Ray workers that have too little memory."""

import numpy as np
import pytest

from tests.digits import digits_config, ingest_some_digits
from transfer.errors import OutOfMemoryError
from transfer.runtime.cluster import run_where
from transfer.storage import open_store
from transfer.training.distributed import train_on_workers
from transfer.training.run import open_run

TOO_MANY = 1 << 52


@pytest.mark.thorough
def test_too_little_memory_is_an_answer_and_not_retried(ray_cluster, tmp_path):
    source, dataset = ingest_some_digits(tmp_path)
    config = digits_config(
        source,
        str(tmp_path / "storage"),
        workers={"count": 2, "max_failures": 1000, "collectives": "ring"},
        training={"batch_size": TOO_MANY},
        features="always",
    )
    run = open_run(open_store(config.storage), config, dataset)
    with pytest.raises(OutOfMemoryError, match=f"at phase 0 ran out of memory: .*training.batch_size .{TOO_MANY}"):
        train_on_workers(run)
    with pytest.raises(OutOfMemoryError, match="A task on the cluster ran out of memory: Unable to allocate"):
        run_where(config.workers, np.empty, TOO_MANY)

"""What Ray Train needs to know to start TensorFlow on a group of workers.

Ray's own `TensorflowTrainer` imports TensorFlow in the driver and the controller and forces tf_keras on the workers.
All that multi-worker TensorFlow needs is TF_CONFIG: who the workers are, and which of them this process is.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig


@dataclass
class TensorFlowBackendConfig(BackendConfig):
    """Asks Ray Train to set TF_CONFIG on each worker."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend that does it."""
        return TensorFlowBackend


class TensorFlowBackend(Backend):
    """Sets TF_CONFIG on each worker of a starting group."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002 - Ray's signature
        """Called by Ray's controller each time that a group has started, also after a failure."""
        addresses = worker_group.execute(_free_address)
        ready = [
            worker_group.execute_single_async(rank, _set_tf_config, addresses, rank) for rank in range(len(addresses))
        ]
        ray.get(ready)


def _free_address() -> str:
    # The port is free now and used within seconds; TensorFlow cannot be handed an open socket.
    host = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _set_tf_config(addresses: list[str], rank: int) -> None:
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})

"""What a job would do with a configuration: its images, its network, what each phase trains, and what serves now.

It needs no TensorFlow; `network_check.py` provides the facts for which the network must be built.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transfer.config import Config, ImageInput
from transfer.dataset.rehearsal import Rehearsal
from transfer.registry.versions import current_promotion
from transfer.storage import Store
from transfer.tuning.plan import plan_for_people

_NAMED = 20
_SERVES = {
    "first": "if nothing serves then (publish.promote: first)",
    "gate": "if it passes the gate (publish.promote: gate)",
    "always": "in any case (publish.promote: always)",
    "never": "when it is promoted (publish.promote: never)",
}


@dataclass(frozen=True)
class NetworkFacts:
    """Facts about a configuration's network that need the built network."""

    parameters: int
    """Number of parameters of the base."""
    blocks: int
    trained: tuple[int, ...]
    """Number of parameters of the base, or of its adapters, that each phase trains."""
    head: int | None
    """Number of parameters of the head; None if the number of classes is unknown."""
    gpus: int
    """Number of GPUs of the machine on which the network was built."""


def overview(
    config: Config, store: Store, *, images: Rehearsal | None, network: NetworkFacts, sweep: dict[str, Any] | None
) -> dict[str, Any]:
    """Describe what a job would do, in JSON's own types. `images`: None if only ingest can read the source."""
    workers = config.workers
    return {
        "dataset": _dataset(config, images),
        "network": {
            "model": config.base.model,
            "weights": config.base.weights_title,
            "image_input": config.image_input.describe(),
            "parameters": network.parameters,
            "blocks": network.blocks,
        },
        "phases": [
            {
                "phase": number,
                "trains": phase.title,
                "parameters": None if network.head is None else of_base + network.head,
                "epochs": phase.epochs,
                "learning_rate": phase.learning_rate,
            }
            for number, (phase, of_base) in enumerate(zip(config.phases, network.trained, strict=True))
        ],
        "workers": {
            "count": workers.count,
            # In this process training uses all GPUs of the machine.
            "gpus": workers.count * workers.gpus_per_worker if workers.count else network.gpus,
        },
        "model": _model(config, store),
        "sweep": sweep,
    }


def _dataset(config: Config, images: Rehearsal | None) -> dict[str, Any]:
    about = {"name": config.dataset_name, "source": config.dataset.source}
    if images is None:
        packed = "The images are known when the source is unpacked, and only then whether ingest takes it."
        return {**about, "unknown": [packed]}
    return {**about, **asdict(images), "images": images.images}


def _model(config: Config, store: Store) -> dict[str, Any]:
    serving = current_promotion(store, config.name)
    return {
        "name": config.name,
        "publishes": config.publish.enabled,
        "promote": config.publish.promote,
        "serves": None if serving is None else {"version": serving.version, "since": serving.since},
    }


def for_people(found: dict[str, Any], config: Config) -> dict[str, Any]:
    """An overview as lines and one table, for `transfer.cli.output.show`."""
    dataset, network, workers, model = (found[name] for name in ("dataset", "network", "workers", "model"))
    gpus = f"{workers['gpus']} GPU{'' if workers['gpus'] == 1 else 's'}"
    return {
        **_dataset_for_people(dataset),
        "network": f"{network['model']}, weights {network['weights']}, {ImageInput(**network['image_input']).title}: "
        f"{network['parameters']:,} parameters in {network['blocks']} blocks",
        "workers": f"this process, {gpus}" if workers["count"] == 0 else f"{workers['count']}, {gpus}",
        "publishes": f"a version of `{model['name']}`, which serves {_SERVES[model['promote']]}"
        if model["publishes"]
        else "nothing",
        "serves now": "nothing"
        if model["serves"] is None
        else f"version {model['serves']['version']}, since {model['serves']['since']}",
        **(plan_for_people(found["sweep"], config) if found["sweep"] else {}),
        "phases": [phase | {"learning_rate": f"{phase['learning_rate']:g}"} for phase in found["phases"]],
    }


def _dataset_for_people(dataset: dict[str, Any]) -> dict[str, Any]:
    if "images" not in dataset:
        return {"not_known": " ".join(dataset["unknown"])}
    most, about = ("up to ", "of which about ") if dataset["unknown"] else ("", "")
    names = [f"{name} {count:,}" for name, count in dataset["classes"].items()]
    more = f", and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    splits = ", ".join(f"{count:,} {split}" for split, count in dataset["splits"].items())
    return {
        "images": f"{most}{dataset['images']:,}: {about}{splits}",
        "splits": dataset["split_by"],
        "classes": f"{len(names):,}: {', '.join(names[:_NAMED])}{more}",
        "left_out": {reason.replace("_", " "): count for reason, count in dataset["rejected"].items()},
        "warnings": " ".join(dataset["warnings"]) or None,
        "not_known": " ".join(dataset["unknown"]) or None,
    }

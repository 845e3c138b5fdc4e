"""A check of the network before a job spends anything: whether it can be cut, and what each phase would train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from transfer.backbone.backbone import Backbone
from transfer.backbone.blocks import trainable_parameters
from transfer.backbone.projections import targets_in
from transfer.config import Config, PhaseConfig
from transfer.errors import BackboneError
from transfer.overview import NetworkFacts
from transfer.storage import open_store
from transfer.training.model import build_head_for
from transfer.training.shared_models import process_models
from transfer.training.warm_start import published_head


def check_network(
    config: Config, *, searched: Mapping[str, Sequence[PhaseConfig]], classes: list[str] | None
) -> NetworkFacts:
    """Build the network, cut it at the depth of each phase and each searched one, and find the head of a warm start.

    `searched`: phases by the key that a sweep searches. `classes`: None if they are unknown. Raises BackboneError,
    which names the key, and what building a model raises.
    """
    # The strategy of training must come before anything that uses a GPU, because training reuses this network.
    shared = process_models()
    with shared.strategy.scope():
        backbone = shared.backbone(config)
        head = None if classes is None else build_head_for(backbone, config, classes).count_params()
    trained = [_trained(backbone, f"phases.{number}", phase) for number, phase in enumerate(config.phases)]
    for key, phases in searched.items():
        for phase in phases:
            _trained(backbone, f"sweep.space.{key}", phase)
    if config.training.warm_start is not None:
        published_head(open_store(config.storage), config, config.training.warm_start)
    return NetworkFacts(
        parameters=sum(block.parameters for block in backbone.blocks),
        blocks=len(backbone.blocks),
        trained=tuple(trained),
        head=head,
        gpus=len(tf.config.list_physical_devices("GPU")),
    )


def _trained(backbone: Backbone, key: str, phase: PhaseConfig) -> int:
    """Number of parameters of the base, or of its adapters, that a phase trains."""
    try:
        _, unfrozen = backbone.cut(phase.unfreeze)
        if unfrozen is None or phase.lora is None:
            return trainable_parameters(unfrozen) if unfrozen else 0
        targets = targets_in(unfrozen, phase.lora.targets, name=backbone.name)
    except BackboneError as error:
        raise BackboneError(f"{key}: {error.message}", advice=error.advice) from error
    return phase.lora.rank * sum(target.parameters_a_rank for target in targets)

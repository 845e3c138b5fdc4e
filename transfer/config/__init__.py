"""The configuration: typed models, reading YAML with overrides, rendering, and the generated reference."""

from transfer.config.loading import load_config, load_document, parse_config, set_key
from transfer.config.models import (
    ActivationsConfig,
    AugmentationConfig,
    BaseNetworkConfig,
    Config,
    DatasetConfig,
    HeadConfig,
    PublishConfig,
    ServingGraph,
    StorageConfig,
)
from transfer.config.nightly import ChecksConfig, GateConfig, NightlyConfig
from transfer.config.section import NOT_LEARNED
from transfer.config.sweep import DomainConfig, SchedulerConfig, SweepConfig
from transfer.config.training import (
    EarlyStoppingConfig,
    OptimizerConfig,
    PhaseConfig,
    ScheduleConfig,
    TrainingConfig,
)
from transfer.config.workers import WorkersConfig

__all__ = [
    "NOT_LEARNED",
    "ActivationsConfig",
    "AugmentationConfig",
    "BaseNetworkConfig",
    "ChecksConfig",
    "Config",
    "DatasetConfig",
    "DomainConfig",
    "EarlyStoppingConfig",
    "GateConfig",
    "HeadConfig",
    "NightlyConfig",
    "OptimizerConfig",
    "PhaseConfig",
    "PublishConfig",
    "ScheduleConfig",
    "SchedulerConfig",
    "ServingGraph",
    "StorageConfig",
    "SweepConfig",
    "TrainingConfig",
    "WorkersConfig",
    "load_config",
    "load_document",
    "parse_config",
    "set_key",
]

"""The configuration: typed models, reading YAML with overrides, rendering, and the generated reference."""

from transfer.config.loading import load_config, parse_config
from transfer.config.models import (
    ActivationsConfig,
    AugmentationConfig,
    BaseNetworkConfig,
    Config,
    DatasetConfig,
    EarlyStoppingConfig,
    HeadConfig,
    OptimizerConfig,
    PhaseConfig,
    PublishConfig,
    ScheduleConfig,
    StorageConfig,
    TrainingConfig,
    WorkersConfig,
)

__all__ = [
    "ActivationsConfig",
    "AugmentationConfig",
    "BaseNetworkConfig",
    "Config",
    "DatasetConfig",
    "EarlyStoppingConfig",
    "HeadConfig",
    "OptimizerConfig",
    "PhaseConfig",
    "PublishConfig",
    "ScheduleConfig",
    "StorageConfig",
    "TrainingConfig",
    "WorkersConfig",
    "load_config",
    "parse_config",
]

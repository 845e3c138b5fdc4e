"""The configuration: typed models, reading YAML with overrides, rendering, and the generated reference."""

from transfer.config.models import (
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
]

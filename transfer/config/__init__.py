"""The configuration: typed models, reading YAML with overrides, rendering, and the generated reference."""

from transfer.config.decides import deciding, keys_that_vary
from transfer.config.image_input import Depth, ImageInput
from transfer.config.loading import config_of_network, load_config, load_document, parse_config, set_key
from transfer.config.models import (
    NOT_LEARNED,
    AugmentationConfig,
    BaselinesConfig,
    BaseNetworkConfig,
    Config,
    CostConfig,
    DatasetConfig,
    FeaturesConfig,
    HeadConfig,
    PublishConfig,
    ServingGraph,
    StorageConfig,
)
from transfer.config.nightly import ChecksConfig, GateConfig, NightlyConfig
from transfer.config.section import Decides, Varies
from transfer.config.sweep import DomainConfig, SchedulerConfig, SweepConfig
from transfer.config.training import (
    EarlyStoppingConfig,
    LoraConfig,
    OptimizerConfig,
    PhaseConfig,
    ScheduleConfig,
    TrainingConfig,
    WorkersConfig,
    unfreeze_title,
)

__all__ = [
    "NOT_LEARNED",
    "AugmentationConfig",
    "BaseNetworkConfig",
    "BaselinesConfig",
    "ChecksConfig",
    "Config",
    "CostConfig",
    "DatasetConfig",
    "Decides",
    "Depth",
    "DomainConfig",
    "EarlyStoppingConfig",
    "FeaturesConfig",
    "GateConfig",
    "HeadConfig",
    "ImageInput",
    "LoraConfig",
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
    "Varies",
    "WorkersConfig",
    "config_of_network",
    "deciding",
    "keys_that_vary",
    "load_config",
    "load_document",
    "parse_config",
    "set_key",
    "unfreeze_title",
]

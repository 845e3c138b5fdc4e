"""The whole configuration file as typed models. Nothing else reads YAML.

Every field's description is its documentation: `docs/configuration.md` and the JSON Schema are generated from here.
"""

from __future__ import annotations

from math import lcm
from pathlib import Path
from typing import Annotated, Any, Literal
from unicodedata import normalize

from pydantic import Field, field_validator, model_validator

from transfer.config.nightly import NightlyConfig
from transfer.config.paths import path_here
from transfer.config.section import Fraction, Name, Section
from transfer.config.sweep import SweepConfig
from transfer.config.training import PhaseConfig, TrainingConfig
from transfer.config.workers import WorkersConfig
from transfer.errors import ConfigError


class StorageConfig(Section):
    """Where everything durable lives. A plain string is short for `{uri: …}`.

    Credentials are never written here: they come from the environment, a shared profile or an instance role.
    """

    uri: str
    """A folder, or `s3://bucket/prefix`."""
    endpoint_url: str | None = None
    """Address of an S3 service other than AWS, for example a MinIO or Ceph server. Default: AWS, or
    `AWS_ENDPOINT_URL` where it is set."""
    region: str | None = None
    """Region of the bucket. Default: what the environment says."""
    single_writer: bool = False
    """Accept a store that does not honour conditional writes. Then two writers at once can overwrite each other's
    dataset versions, model versions and promotions; only use it where a single job writes at a time."""
    cache_folder: str | None = None
    """Folder on each machine's own disk where objects of a bucket are kept once they were fetched; `~` is the home on
    that machine. Default: `$XDG_CACHE_HOME/transfer`, or `~/.cache/transfer`."""
    cache_size_bytes: Annotated[int, Field(ge=0)] = 20 * 1024**3
    """Most that is kept there; beyond it, what was not used for longest is given up. 0: nothing is kept."""

    @field_validator("uri")
    @classmethod
    def _folder_absolute(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("storage is empty and must be a folder or `s3://bucket/prefix`")
        # Workers may run in another folder than the one the configuration was written for.
        if "://" in value:
            return value
        try:
            return str(path_here(value).absolute())
        except ConfigError as error:
            raise ValueError(error.message) from None

    @field_validator("cache_folder")
    @classmethod
    def _cache_folder_absolute(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("storage.cache_folder is empty and must be a folder")
        return value if value is None or value.startswith("~") else str(Path(value).absolute())


class DatasetConfig(Section):
    """Which images, how they are labelled, and how they are split."""

    source: str
    """Class folders (a folder or an `s3://` prefix), a `.zip` or `.tar.gz` of class folders (local, `s3://` or
    `https://`), a `.csv` or `.parquet` table of paths and labels, `tfds:NAME` or `digits`."""
    name: Name | None = None
    """Name of the dataset in storage. Default: the configuration's own name."""
    path_column: str = "path"
    """Column of a table that holds paths, relative to the table, or absolute, or `s3://`."""
    label_column: str = "label"
    """Column of a table that holds class names."""
    validation: Fraction = 0.15
    """Share of the images kept for choosing (early stopping, sweeps). Decided by each image's own content."""
    test: Fraction = 0.15
    """Share of the images kept for the report, never trained on."""
    min_images_per_class: Annotated[int, Field(ge=1)] = 2
    """A class with fewer accepted images is an error. A class of an earlier version that has none any more is not."""
    max_reject_share: Fraction = 0.01
    """Ingest fails when a larger share of the images is refused."""
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    """Images with more pixels are refused from their header, before they are decoded."""
    max_file_size_bytes: Annotated[int, Field(ge=1)] = 64 * 1024**2
    """Larger files are refused unread."""
    rename_classes: dict[str, str] = Field(default_factory=dict)
    """Names that changed, `{old: new}`: labels of the source and classes of earlier versions take the new name. Two old
    names may become one, unless both have an index already. No name may be both old and new."""
    transcode: bool = False
    """Turn formats that the serving graph cannot decode (TIFF, AVIF, HEIC, …) into PNG instead of refusing them."""
    shard_size_bytes: Annotated[int, Field(ge=1)] = 64 * 1024**2
    """A shard is closed when its images reach this size."""
    source_max_size_bytes: Annotated[int, Field(ge=1)] = 200 * 1024**3
    """An archive that unpacks to more is refused."""

    @field_validator("rename_classes")
    @classmethod
    def _no_name_both_old_and_new(cls, value: dict[str, str]) -> dict[str, str]:
        # The map is applied in every ingest; `{a: b, b: c}` would rename the former `a` once more in the next one.
        renames = {normalize("NFC", old): normalize("NFC", new) for old, new in value.items()}
        if both := sorted(set(renames) & set(renames.values())):
            raise ValueError(f"rename_classes has `{both[0]}` as an old and as a new name; give each old name its last")
        if not all(new.strip() for new in renames.values()):
            raise ValueError("rename_classes has an empty new name")
        return renames

    @model_validator(mode="after")
    def _splits_leave_something_to_train_on(self) -> DatasetConfig:
        if self.validation + self.test >= 1.0:
            held_out = self.validation + self.test
            raise ValueError(f"validation + test is {held_out:g} and must be below 1: nothing is left to train on")
        return self


class BaseNetworkConfig(Section):
    """The pretrained network."""

    model: str
    """A network of `keras.applications` by name (`MobileNetV2`), a `.keras` file, or a TF Hub style SavedModel
    (folder, `.tar.gz`, `s3://…`, or a handle that tensorflow-hub resolves). Files may be local or `s3://`."""
    weights: str = "imagenet"
    """For `keras.applications`: `imagenet`, `none` (random), or a weights file (`.weights.h5`, local or `s3://`).
    `.keras` files and SavedModels bring their own weights, and a file beside them is refused; with `none` a `.keras`
    file starts with random ones. On random weights with BatchNorms hardly anything can be learned."""
    image_size: Annotated[int, Field(ge=8, le=4096)] = 224
    """Side of the square, in pixels, that images are resized to."""
    tap: str | None = None
    """Name of an inner layer whose output is used instead of the network's last one, for example `mixed7`."""
    accept_head: bool = False
    """Take the outputs of a `.keras` file or SavedModel as features also where it ends in a classifier, which is
    otherwise refused: the answers about its own classes say little of other images. Better: `tap` the layer before."""
    preprocessing: Literal["auto", "0..255", "0..1", "-1..1"] = "auto"
    """Range of pixel values that the network expects. `auto`: what `keras.applications` documents for the network, also
    with `include_preprocessing: false` (refused where no range stands for that); `0..1` for SavedModels, the TF Hub
    convention; `0..255` for `.keras` files."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the network's constructor in `keras.applications`, for example `{alpha: 0.35}`."""

    @property
    def weights_file(self) -> str | None:
        """The file that `weights` names; None for `imagenet` and `none`."""
        return None if self.weights in {"imagenet", "none"} else self.weights


class HeadConfig(Section):
    """The new layers on top of the base."""

    pooling: Literal["average", "max", "flatten"] = "average"
    """How a feature map becomes a vector. Bases that answer a vector already are left as they are."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """Units of each hidden layer, with ReLU."""
    dropout: Fraction = 0.2
    """Share of the units dropped before each dense layer in training."""
    l2: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the L2 penalty on the head's kernels."""
    output: Literal["softmax", "sigmoid"] = "softmax"
    """`sigmoid` is one output unit, for exactly two classes."""


class AugmentationConfig(Section):
    """Random changes of the training images, on the accelerator. Never in validation, test or the export."""

    flip: Literal["none", "horizontal", "vertical", "both"] = "none"
    """Random mirroring."""
    rotation_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Rotate by up to this angle either way."""
    shift: Fraction = 0.0
    """Shift by up to this share of the image's side, both ways in both directions."""
    shear_degrees: Annotated[float, Field(ge=0.0, le=45.0)] = 0.0
    """Shear by up to this angle."""
    zoom: Fraction = 0.0
    """Zoom in or out by up to this share."""
    brightness: Fraction = 0.0
    """Brighten or darken by up to this share of the full range."""
    contrast: Fraction = 0.0
    """Raise or lower the contrast by up to this factor."""
    fill_mode: Literal["constant", "nearest", "reflect", "wrap"] = "reflect"
    """What fills the pixels that a movement uncovers."""

    views: Annotated[int, Field(ge=0, le=1000)] = 0
    """`0` changes every image anew in every epoch, so the whole network runs every time. `k` makes k changed views of
    each image once, keeps the frozen part's output for them, and cycles through them: k passes in all, however many
    epochs, trials and nights."""

    @property
    def is_active(self) -> bool:
        """Whether any image would be changed."""
        return self != AugmentationConfig(fill_mode=self.fill_mode, views=self.views)


class ActivationsConfig(Section):
    """What is kept of the frozen part's output. A plain string is short for `{keep: …}`."""

    keep: Literal["auto", "always", "never"] = "auto"
    """`auto` measures, for each phase, whether keeping the output is cheaper than computing it again. `always` keeps it
    wherever a phase's frozen part is still the pretrained one; `never` trains from pixels."""
    map_dtype: Literal["float32", "float16"] = "float32"
    """Feature maps are kept in this type; pooled vectors always in float32. `float16` halves the size and rounds to
    three digits."""
    engine: Literal["auto", "tensorflow", "openvino"] = "auto"
    """What runs the frozen part. `auto`: on CPUs OpenVINO, where the extra `openvino` is installed and its answers
    agree with TensorFlow's; else TensorFlow."""


ServingGraph = Literal["merged", "plain"]


class PublishConfig(Section):
    """What happens with a finished run."""

    enabled: bool = True
    """Export the model and add it to the registry."""
    promote: bool = True
    """Make the new version the one that serving reads."""
    graph: ServingGraph = "merged"
    """`merged`: BatchNorms are merged into the layers before them, which answers sooner and rounds otherwise. `plain`:
    the layers as they were trained."""
    parity_images: Annotated[int, Field(ge=1)] = 64
    """Held-out images on which a fresh process compares the exported model with the evaluated one. An export goes wrong
    in a layer, a weight or a format of images, which a few show: more cost time and tell nothing new."""


class Config(Section):
    """One training job: images in, a published model out."""

    name: Name
    """Name of the job, and of the model it publishes."""
    storage: StorageConfig
    """Where datasets, runs and models are kept."""
    dataset: DatasetConfig
    base: BaseNetworkConfig
    head: HeadConfig = HeadConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    activations: ActivationsConfig = ActivationsConfig()
    phases: Annotated[list[PhaseConfig], Field(min_length=1)] = Field(default_factory=lambda: [PhaseConfig()])
    """Training, one phase after the other."""
    training: TrainingConfig = TrainingConfig()
    workers: WorkersConfig = WorkersConfig()
    publish: PublishConfig = PublishConfig()
    sweep: SweepConfig | None = None
    """What `transfer sweep` searches; other jobs do not read it."""
    nightly: NightlyConfig = NightlyConfig()
    """What `transfer nightly` asks of new data and of a new model; other jobs do not read it."""

    @field_validator("storage", mode="before")
    @classmethod
    def _storage_from_uri(cls, value: object) -> object:
        return {"uri": value} if isinstance(value, str) else value

    @field_validator("activations", mode="before")
    @classmethod
    def _activations_from_mode(cls, value: object) -> object:
        return {"keep": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _batch_divisible_by_replicas(self) -> Config:
        workers, batch_size = self.workers, self.training.batch_size
        if batch_size % workers.replicas:
            raise ValueError(
                f"training.batch_size is {batch_size} and must be divisible by the {workers.replicas} replicas "
                "(workers.count x workers.gpus_per_worker)"
            )
        replicas = [count * max(workers.gpus_per_worker, 1) for count in workers.counts]
        if any(batch_size % number for number in replicas[:-1]):
            raise ValueError(
                f"training.batch_size is {batch_size} and must be divisible by any number of replicas from "
                f"{replicas[0]} to {replicas[-1]} (workers.min_count to workers.count, x workers.gpus_per_worker): "
                f"give a multiple of {lcm(*replicas)}"
            )
        return self

    @model_validator(mode="after")
    def _shared_gpus_are_there(self) -> Config:
        shared = self.sweep is not None and self.sweep.gpus_per_trial is not None
        if shared and (self.workers.count, self.workers.gpus_per_worker) != (1, 1):
            raise ValueError(
                f"sweep.gpus_per_trial shares a GPU among trials of one worker, and workers.count is "
                f"{self.workers.count} with gpus_per_worker {self.workers.gpus_per_worker}; both must be 1"
            )
        return self

    @model_validator(mode="after")
    def _views_are_kept(self) -> Config:
        if self.augmentation.views and self.activations.keep == "never":
            raise ValueError(
                f"augmentation.views is {self.augmentation.views}, which keeps the views' activations, and "
                "activations.keep is `never`; set views to 0 to augment anew in every epoch"
            )
        return self

    @property
    def trains_head_only(self) -> bool:
        """Whether no phase changes a weight of the base."""
        return all(phase.unfreeze == 0 for phase in self.phases)

    @property
    def dataset_name(self) -> str:
        """Name of the dataset in storage."""
        return self.dataset.name or self.name

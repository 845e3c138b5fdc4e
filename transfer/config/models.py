"""The whole configuration file as typed models. Nothing else reads YAML.

Every field's description is its documentation: `docs/configuration.md` and the JSON Schema are generated from here.
"""

from __future__ import annotations

import re
from itertools import permutations
from math import lcm
from pathlib import Path
from typing import Annotated, Any, Literal
from unicodedata import normalize

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from transfer.config.decides import LEARNED, decided_by, why_not_searched
from transfer.config.explain import explain
from transfer.config.image_input import Depth, Fit, ImageInput
from transfer.config.nightly import NightlyConfig
from transfer.config.paths import is_model_file, path_here
from transfer.config.section import Decides, Fraction, Name, NotSearched, Section, Varies
from transfer.config.sweep import SweepConfig
from transfer.config.training import PhaseConfig, TrainingConfig, WorkersConfig
from transfer.errors import ConfigError


class StorageConfig(Section, decides=Decides.PLACEMENT):
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
    """Folder on each machine's own disk in which objects of a bucket are cached; `~` is the home on that machine.
    Default: `$XDG_CACHE_HOME/transfer`, or `~/.cache/transfer`."""
    cache_size_bytes: Annotated[int, Field(ge=0)] = 20 * 1024**3
    """Largest size of that cache; beyond it the least recently used objects are removed. 0: nothing is cached."""

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


Value16 = Annotated[int, Field(ge=0, le=65535)]


class WindowConfig(Section, decides=Decides.DATA):
    """The same window for all images."""

    window: tuple[Value16, Value16]
    """The values of 16 bits that become 0 and 255, `[low, high]`; what lies outside is clipped."""

    @field_validator("window")
    @classmethod
    def _low_below_high(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] >= value[1]:
            raise ValueError(f"window is [{value[0]}, {value[1]}]; its first value must be below its second")
        return value


class DatasetConfig(Section, decides=Decides.DATA):
    """Which images, how they are labelled, and how they are split."""

    source: str
    """Class folders (a folder or an `s3://` prefix), a `.zip` or `.tar.gz` of class folders (local, `s3://` or
    `https://`), a `.csv` or `.parquet` table of paths and labels, Parquet with the images in it (a file, or a folder or
    prefix of parts), `tfds:NAME` or `digits`."""
    name: Name | None = None
    """Name of the dataset in storage. Default: the configuration's own name."""
    path_column: str = "path"
    """Column of a table with paths, relative to the table, absolute, or `s3://`; or column of a Parquet table with the
    images themselves. If no column has this name, the only column of images is used."""
    label_column: str = "label"
    """Column of a table that holds class names."""
    exclude: list[str] = Field(default_factory=list)
    """Patterns of files and folders to leave out, for example `[masks, "*_thumb.*", "cat/old/*"]`. A pattern without a
    slash is compared with each part of an image's path, a pattern with slashes with the path from the source on. `*`
    matches anything, `?` one character. A folder is left out with its content."""
    classes: list[str] | None = None
    """The classes to take, by their names after `rename_classes`; images of others are left out. Default: all."""
    subfolder: str | None = None
    """Folder inside the source (a folder, an `s3://` prefix or an archive) that holds the class folders. Files beside
    it are not read."""
    validation: Fraction = 0.15
    """Share of the images that is held out for choosing (early stopping, sweeps), drawn by each image's content. It is
    not used if the source gives a validation split."""
    test: Fraction = 0.15
    """Share of the images that is held out for the report and never trained on, drawn in the same way. It is not used
    if the source gives a test split."""
    splits: dict[Literal["train", "validation", "test"], str] | None = None
    """Folders of the source that hold the class folders of each split, `{train: train, validation: val, test: test}`.
    A split that is not named is drawn from train. Default: folders with the usual names are taken as splits where no
    others are beside them and all have the same class folders. `{}`: folders are classes, whatever their names are."""
    split_column: str | None = None
    """Column of a table that holds each image's split: `train`, `val`, `test` and the like. A split that no row names
    is drawn from train. Images with an empty cell count as train."""
    tfds_splits: Literal["merge", "keep"] = "merge"
    """Splits of a `tfds:NAME` source. `keep`: its own splits are used; a split that it lacks is drawn from train.
    `merge`: all its images are split like those of any source."""
    group_column: str | None = None
    """Column of a table that holds each image's group: a patient, a camera, a burst. All images of a group are in the
    same split, by a hash of the group's name. Images without a group are split by their own content."""
    group_pattern: str | None = None
    """Groups for any source: a regular expression that is searched in each image's key, its path in the source. The
    group is the match of the expression's one `(…)`, or the whole match if it has none."""
    prefer: Literal["test"] | None = None
    """What to do with identical images in several given splits. Default: refuse them. `test`: keep the copy in the
    test split, or the one in validation where test has none."""
    min_images_per_class: Annotated[int, Field(ge=1)] = 2
    """A class with fewer accepted images is an error. A class of an earlier version may lose all of
    its images."""
    max_reject_share: Fraction = 0.01
    """Ingest fails when a larger share of the images is refused. The share is rounded up to a whole image, so one odd
    file does not end the ingest of a small folder; `0` allows none."""
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    """Images with more pixels are refused from their header, before they are decoded."""
    max_file_size_bytes: Annotated[int, Field(ge=1)] = 64 * 1024**2
    """Larger files are refused unread."""
    rename_classes: dict[str, str] = Field(default_factory=dict)
    """Names that changed, `{old: new}`: labels of the source and classes of earlier versions get the new name. Two old
    names may become one, unless both have an index already. No name may be both old and new."""
    transcode: bool = False
    """Turn formats that the serving graph cannot decode (TIFF, AVIF, HEIC, …) into PNG instead of refusing them at
    ingest. `predict` always does."""
    background: str | None = None
    """Color under transparent pixels: `black`, `white` or `"#rrggbb"`, in quotes. Images with transparent pixels
    are stored on it, and the published model puts them on it. Default: the color that the file has under them.
    Transparent pixels of a GIF are black."""
    depth: Literal["reject", "scale"] | WindowConfig = "reject"
    """How images of 16 bits a channel become 0..255, in training and in the published model. `reject`: their upper 8
    bits; an image whose largest value is below 4096 would be nearly black, and is refused. `scale`: each image's own
    smallest to largest value. `{window: [low, high]}`: the same two values for all images."""
    shard_size_bytes: Annotated[int, Field(ge=1)] = 64 * 1024**2
    """A shard is closed when its images reach this size."""
    source_max_size_bytes: Annotated[int, Field(ge=1)] = 200 * 1024**3
    """An archive that unpacks to more is refused."""

    @field_validator("depth", mode="before")
    @classmethod
    def _depth_known(cls, value: object) -> object:
        if isinstance(value, str) and value not in {"reject", "scale"}:
            raise ValueError("depth must be `reject`, `scale` or `{window: [low, high]}`")
        return value

    @field_validator("exclude")
    @classmethod
    def _patterns_of_paths(cls, value: list[str]) -> list[str]:
        for pattern in value:
            if not pattern.strip("/ "):
                raise ValueError(f"exclude has the pattern {pattern!r}, which stands for no name")
            if pattern.startswith(("/", "./")):
                raise ValueError(f"exclude has `{pattern}`; patterns begin in the source, as in `cat/old/*`")
        return [normalize("NFC", pattern) for pattern in value]

    @field_validator("classes")
    @classmethod
    def _two_classes_or_more(cls, value: list[str] | None) -> list[str] | None:
        classes = value and list(dict.fromkeys(normalize("NFC", name).strip() for name in value))
        if classes is not None and len(classes) < 2:
            raise ValueError("classes must name two classes or more; leave it out to take all")
        return classes

    @field_validator("background")
    @classmethod
    def _background_in_hexadecimal(cls, value: str | None) -> str | None:
        # One color has one spelling, for it is part of what a dataset version is.
        color = value and {"black": "#000000", "white": "#ffffff"}.get(value, value.lower())
        if color is not None and not re.fullmatch("#[0-9a-f]{6}", color):
            raise ValueError('background must be `black`, `white` or `"#rrggbb"`')
        return color

    @field_validator("subfolder")
    @classmethod
    def _subfolder_inside(cls, value: str | None) -> str | None:
        return value and _folder_inside("subfolder", value)

    @field_validator("splits")
    @classmethod
    def _split_folders_apart(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if not value:
            return value
        if "train" not in value:
            raise ValueError("splits names no folder for `train`, and there must be something to train on")
        folders = {split: _folder_inside(f"splits.{split}", folder) for split, folder in value.items()}
        for one, other in permutations(folders.values(), 2):
            if f"{other}/".startswith(f"{one}/"):
                raise ValueError(f"splits names `{one}` and `{other}`, and one of them holds the other")
        return folders

    @field_validator("group_pattern")
    @classmethod
    def _pattern_compiles(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"group_pattern is `{value}`, which is no regular expression: {error}") from None
        if groups > 1:
            raise ValueError(
                f"group_pattern is `{value}`, with {groups} groups; it may have one; write `(?:…)` for others"
            )
        return value

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

    @property
    def image_depth(self) -> Depth:
        """`depth` as an ImageInput has it."""
        return self.depth.window if isinstance(self.depth, WindowConfig) else self.depth

    @model_validator(mode="after")
    def _one_way_to_group(self) -> DatasetConfig:
        if self.group_column is not None and self.group_pattern is not None:
            raise ValueError("group_column and group_pattern both say what a group is; leave one of them out")
        return self

    @model_validator(mode="after")
    def _splits_leave_something_to_train_on(self) -> DatasetConfig:
        if self.validation + self.test >= 1.0:
            held_out = self.validation + self.test
            raise ValueError(f"validation + test is {held_out:g} and must be below 1: nothing is left to train on")
        return self


def _folder_inside(key: str, folder: str) -> str:
    """A folder inside the source, with `/` between its parts and none around them. Raises ValueError."""
    parts = folder.strip("/").split("/")
    if folder.startswith("/") or not set(parts).isdisjoint({"", ".", ".."}):
        raise ValueError(f"{key} is `{folder}` and must be the path of a folder inside the source, such as `train`")
    return "/".join(parts)


Side = Annotated[int, Field(ge=8, le=4096)]


class BaseNetworkConfig(Section, decides=Decides.FEATURES):
    """The pretrained network."""

    model: str
    """A network of `keras.applications` by name (`MobileNetV2`) or `EfficientNetLite0`, a `.keras` file, or a TF Hub
    style SavedModel (folder, `.tar.gz`, `s3://…`, or a handle that tensorflow-hub resolves). Files may be local or
    `s3://`. A folder is written with a slash, `./module`: a plain word names a network."""
    weights: str = "imagenet"
    """For a network by name: `imagenet`, `none` (random), or a weights file (`.weights.h5`, local or `s3://`). Keras
    downloads `imagenet`; that of `EfficientNetLite0` comes with the extra `demo`. `.keras` files and SavedModels bring
    their own weights, and a file beside them is refused; with `none` a `.keras` file starts with random ones."""
    image_size: Annotated[Side | tuple[Side, Side], Varies.IN_WARM_START] = 224
    """Size in pixels of the images that the network takes: the side of a square, or `[height, width]`."""
    fit: Annotated[Fit, Varies.IN_WARM_START] = "stretch"
    """How an image becomes that size. `stretch`: resized whole, whatever its shape. `crop`: the largest part of the
    right shape around the center, resized. `pad`: resized as it is, with black bars where something is missing."""
    crop_share: Annotated[float, Field(gt=0.0, le=1.0), Varies.IN_WARM_START] = 1.0
    """With `fit: crop`: share of that part that is taken, a side. Many networks of ImageNet were tested with 0.875."""
    antialias: Annotated[bool, Varies.IN_WARM_START] = False
    """Average over all pixels of an image that is made smaller. Without it, pixels between the ones that bilinear
    interpolation reads do not count."""
    channels: Literal[1, 3] = 3
    """Channels of the images that the network takes. `1`: gray, for `.keras` files, SavedModels and random or own
    weights of a network that was built so; the imagenet weights of `keras.applications` take 3."""
    tap: str | None = None
    """Name of an inner layer whose output is used instead of the network's last one, for example `mixed7`."""
    # A permission, which the ids of runs leave out (`base_identity`). Those of nights and packs have it.
    accept_head: Annotated[bool, Varies.IN_WARM_START] = False
    """Accept a `.keras` file or SavedModel that ends in a classifier. It is refused otherwise, because predictions of
    its own classes are poor features of other images. Better: `tap` the layer before."""
    preprocessing: Literal["auto", "0..255", "0..1", "-1..1"] = "auto"
    """Range of pixel values that the network expects. `auto`: what `keras.applications` documents for the network, also
    with `include_preprocessing: false` (refused where no range stands for that); `0..1` for SavedModels, the TF Hub
    convention; `0..255` for `.keras` files."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the network's constructor in `keras.applications`, for example `{alpha: 0.35}`."""

    @field_validator("image_size", mode="wrap")
    @classmethod
    def _one_sentence_about_a_size(cls, value: object, handler: ValidatorFunctionWrapHandler) -> int | tuple[int, int]:
        try:
            size: int | tuple[int, int] = handler(value)
        except ValidationError:
            found = "" if isinstance(value, str | int | float) else f", not {value}"
            raise ValueError(
                f"must be the side of a square or `[height, width]`, each from 8 to 4,096 pixels{found}"
            ) from None
        return size

    @model_validator(mode="after")
    def _crop_share_only_with_crop(self) -> BaseNetworkConfig:
        if self.crop_share != 1.0 and self.fit != "crop":
            raise ValueError(f"crop_share is {self.crop_share:g} and fit is `{self.fit}`; it goes with `fit: crop`")
        return self

    def image_input(self, depth: Depth = "reject") -> ImageInput:
        """The images that the network takes, `depth` as the dataset has it."""
        height, width = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        return ImageInput(
            height,
            width,
            fit=self.fit,
            crop_share=self.crop_share,
            antialias=self.antialias,
            channels=self.channels,
            depth=depth,
        )

    @property
    def weights_file(self) -> str | None:
        """The file that `weights` names; None for `imagenet` and `none`."""
        return None if self.weights in {"imagenet", "none"} else self.weights

    @property
    def weights_title(self) -> str:
        """Origin of the weights in words: `imagenet`, `none`, or the name of their file."""
        # A file brings its own, whatever the key's default says.
        brought = self.model if is_model_file(self.model) and self.weights == "imagenet" else self.weights
        is_address = "://" in brought and not brought.startswith("s3://")
        return brought if is_address else brought.rstrip("/").rpartition("/")[2]


class HeadConfig(Section, decides=Decides.LEARNING):
    """The new layers on top of the base."""

    pooling: Annotated[Literal["average", "max", "flatten"], Decides.FEATURES] = "average"
    """How a feature map becomes a vector. It has no effect on bases whose output is a vector."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """Units of each hidden layer, with ReLU."""
    dropout: Annotated[Fraction, Varies.IN_TRAINING | Varies.IN_PACK] = 0.2
    """Share of the units that training drops before each dense layer (Srivastava et al., 2014)."""
    l2: Annotated[float, Field(ge=0.0), Varies.IN_TRAINING | Varies.IN_PACK] = 0.0
    """Weight of the L2 penalty on the head's kernels."""
    output: Literal["softmax", "sigmoid"] = "softmax"
    """`sigmoid` is one output unit, for exactly two classes."""


class AugmentationConfig(Section, decides=Decides.FEATURES):
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

    views: Annotated[int, Field(ge=0, le=1000), Decides.LEARNING] = 0
    """`0` changes every image anew in every epoch, so the whole network runs every time. `k` makes k changed views of
    each image once, caches their features, and cycles through them: k passes in all, however many
    epochs, trials and nights."""

    @property
    def is_active(self) -> bool:
        """Whether any image is changed."""
        return self != AugmentationConfig(fill_mode=self.fill_mode, views=self.views)


class FeaturesConfig(Section, decides=Decides.LEARNING):
    """Cached features: the output of the frozen part, stored. A plain string is short for `{cache: …}`."""

    cache: Literal["auto", "always", "never"] = "auto"
    """`auto` caches, for each phase, features that are vectors, that are smaller than the encoded images, or that take
    much arithmetic for their size. `always` caches them wherever a phase's frozen part is still the pretrained one;
    `never` trains from pixels. Another value is another run, which learns the same up to rounding, unless the split is
    larger than `training.shuffle_window_bytes`: pixels then come in another order."""
    map_dtype: Annotated[Literal["float32", "float16"], Decides.FEATURES] = "float32"
    """Feature maps are cached in this type; pooled vectors always in float32. `float16` halves the size and rounds to
    three digits."""
    engine: Literal["auto", "tensorflow", "openvino"] = "auto"
    """Library that runs the frozen part. `auto`: on CPUs OpenVINO, if the extra `openvino` is installed and its outputs
    agree with those of TensorFlow; else TensorFlow. Another value is another run, which learns the same up to
    rounding."""


ServingGraph = Literal["merged", "plain"]


Promote = Literal["first", "gate", "always", "never"]


class PublishConfig(Section, decides=Decides.OUTPUT):
    """Publishing and promoting a finished run."""

    enabled: bool = True
    """Export the model and add it to the registry."""
    promote: Promote = "first"
    """Whether a new version serves. `first`: if nothing serves yet and it is better than always predicting the
    commonest class; later versions wait for `transfer registry promote`. `gate`: if it passes the rules of
    `nightly.gate` against the version that serves. `always`; `never`. A night asks its gate, unless `never`."""
    graph: ServingGraph = "merged"
    """`merged`: BatchNorms are merged into the layers before them, which is faster and rounds differently. `plain`: the
    layers as they were trained."""
    parity_images: Annotated[int, Field(ge=1)] = 64
    """Held-out images on which a fresh process compares the exported model with the evaluated one. An error of an
    export is in a layer, a weight or a format of images, which a few images show."""

    @field_validator("promote", mode="before")
    @classmethod
    def _from_earlier_releases(cls, value: object) -> object:
        """Earlier releases had only true and false."""
        return {True: "always", False: "never"}[value] if isinstance(value, bool) else value


class Config(Section):
    """One training job: images in, a published model out.

    Example:
        >>> config = transfer.Config(
        ...     name="flowers",
        ...     storage="./storage",
        ...     dataset={"source": "./flower_photos", "test": 0.2},
        ...     base={"model": "MobileNetV2", "image_size": 96},
        ... )
        >>> config.dataset.test, config.training.batch_size
        (0.2, 32)
    """

    name: Annotated[Name, Decides.LEARNING, NotSearched("all trials belong to one model")]
    """Name of the job, and of the model it publishes."""
    storage: Annotated[StorageConfig, NotSearched("all trials share one storage")]
    """Where datasets, runs and models are kept."""
    dataset: DatasetConfig
    base: BaseNetworkConfig
    head: HeadConfig = HeadConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    features: Annotated[FeaturesConfig, NotSearched("it decides how a trial is computed")] = FeaturesConfig()
    phases: Annotated[list[PhaseConfig], Field(min_length=1)] = Field(default_factory=lambda: [PhaseConfig()])
    """Training, one phase after the other."""
    training: TrainingConfig = TrainingConfig()
    workers: WorkersConfig = WorkersConfig()
    publish: PublishConfig = PublishConfig()
    sweep: SweepConfig | None = None
    """What `transfer sweep` searches; other jobs do not read it."""
    nightly: Annotated[NightlyConfig, NotSearched("it judges models, and decides nothing of what they learn")] = (
        NightlyConfig()
    )
    """What `transfer nightly` asks of new data and of a new model; other jobs do not read it."""

    @field_validator("storage", mode="before")
    @classmethod
    def _storage_from_uri(cls, value: object) -> object:
        return {"uri": value} if isinstance(value, str) else value

    @field_validator("sweep")
    @classmethod
    def _keys_may_be_searched(cls, value: SweepConfig | None) -> SweepConfig | None:
        for key in value.space if value else ():
            reason = why_not_searched(cls, key)
            if reason is not None:
                raise ValueError(f"space: `{key}` cannot be searched: {reason}")
        return value

    @field_validator("features", mode="before")
    @classmethod
    def _features_from_mode(cls, value: object) -> object:
        return {"cache": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _batch_divisible_by_replicas(self) -> Config:
        workers, batch_size = self.workers, self.training.batch_size
        # Without GPUs each worker is a replica, and there is no reason to know that word.
        many, each = ("replicas", " x workers.gpus_per_worker") if workers.gpus_per_worker else ("workers", "")
        if batch_size % workers.replicas:
            raise ValueError(
                f"training.batch_size is {batch_size} and must be divisible by the {workers.replicas} {many} "
                f"(workers.count{each})"
            )
        replicas = [count * max(workers.gpus_per_worker, 1) for count in workers.counts]
        if any(batch_size % number for number in replicas[:-1]):
            raise ValueError(
                f"training.batch_size is {batch_size} and must be divisible by any number of {many} from "
                f"{replicas[0]} to {replicas[-1]} (workers.min_count to workers.count{each and ',' + each}): "
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
    def _views_are_cached(self) -> Config:
        if self.augmentation.views and self.features.cache == "never":
            raise ValueError(
                f"augmentation.views is {self.augmentation.views}, which caches the features of the views, and "
                "features.cache is `never`; set views to 0 to augment anew in every epoch"
            )
        return self

    # The last validator is the outermost: it sees what the others refuse.
    @model_validator(mode="wrap")
    @classmethod
    def _errors_explained(
        cls, document: Any, validate: ModelWrapValidatorHandler[Config], info: ValidationInfo
    ) -> Config:
        """Raise ConfigError that lists every problem, also for a `Config(…)` in Python."""
        try:
            return validate(document)
        except ValidationError as error:
            name = (info.context or {}).get("name", "This")
            raise ConfigError(explain(error, cls, name=name)) from None

    @property
    def trains_head_only(self) -> bool:
        """Whether no phase changes a weight of the base."""
        return all(phase.unfreeze == 0 for phase in self.phases)

    @property
    def image_input(self) -> ImageInput:
        """The images that the network takes, and how this dataset's become them."""
        return self.base.image_input(self.dataset.image_depth)

    @property
    def dataset_name(self) -> str:
        """Name of the dataset in storage."""
        return self.dataset.name or self.name


NOT_LEARNED = frozenset(name for name in Config.model_fields if decided_by(Config, name).isdisjoint(LEARNED))
"""Sections without any key that decides what a run learns."""

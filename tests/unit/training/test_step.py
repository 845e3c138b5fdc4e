"""The step on a small network of known parts: what it computes, and that dividing a batch changes nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.replicas import two_replicas
from tests.trained import largest_difference
from transfer.augmentation import Augmentation
from transfer.backbone.backbone import set_precision
from transfer.backbone.batch_norms import statistics_of, watch_batch_norms
from transfer.backbone.projections import projections_in
from transfer.config import AugmentationConfig, HeadConfig, OptimizerConfig, PhaseConfig, ScheduleConfig, TrainingConfig
from transfer.training.lora import build_adapters
from transfer.training.model import CutModel, build_head
from transfer.training.step import Chunk, PhaseProgram

ROWS, BATCH, CLASSES = 10, 8, 3
_random = np.random.default_rng(0)
IMAGES = _random.uniform(0, 255, (ROWS, 16, 16, 3)).astype(np.float32)
LABELS = _random.integers(0, CLASSES, ROWS).astype(np.int32)
EVERYTHING = AugmentationConfig(
    flip="both", rotation_degrees=20, shift=0.1, shear_degrees=10, zoom=0.2, brightness=0.2, contrast=0.3
)


@pytest.fixture(autouse=True)
def _full_precision():
    yield
    set_precision("off")


def tiny_cut(head, *, lora=None, by_batch=False):
    """A convolution, frozen, and one with BatchNorm, not frozen, with the same initial weights each time.

    With `lora`, two Dense layers come after them, and only their adapters are trained.
    """

    def convolution(seed):
        return keras.layers.Conv2D(8, 3, strides=2, kernel_initializer=keras.initializers.GlorotUniform(seed=seed))

    image = keras.Input((16, 16, 3))
    frozen = keras.Model(image, convolution(1)(image))
    features = keras.Input(frozen.output_shape[1:])
    x = keras.layers.BatchNormalization()(features)
    x = convolution(2)(keras.layers.ReLU()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    for index in range(2 if lora else 0):
        initializer = keras.initializers.GlorotUniform(seed=index)
        x = keras.layers.Dense(8, kernel_initializer=initializer, kernel_regularizer="l2")(x)
    unfrozen = keras.Model(features, x)
    head = build_head(head, feature_shape=unfrozen.output_shape[1:], class_count=CLASSES, seed=0)
    adapters = build_adapters(projections_in(unfrozen.layers), lora) if lora else []
    for place, adapter in enumerate(adapters):
        unfrozen.trainable = False
        adapter.start([place])
    if by_batch:
        watch_batch_norms(unfrozen)
    modes = {"normalises_by_batch": by_batch, "adapters": adapters}
    return CutModel(lambda images: images / 127.5 - 1.0, frozen, unfrozen, head, **modes)


def global_batch(step):
    """Two batches an epoch of ten rows: eight, then two with six rows that only fill up."""
    places = np.arange(BATCH) + (step % 2) * BATCH
    rows, real = places % ROWS, (places < ROWS).astype(np.float32)
    positions = np.arange(BATCH, dtype=np.int32)
    return {"images": IMAGES[rows], "labels": LABELS[rows], "real": real, "positions": positions}


def parts_of(batch, replicas):
    share = BATCH // replicas
    for index in range(replicas):
        yield {name: tf.constant(value[index * share : (index + 1) * share]) for name, value in batch.items()}


def chunk_of(cut, steps):
    """The same batches as cached features, with room for one more."""
    batches = [global_batch(step) for step in steps]

    def stacked(values):
        return np.stack([*values, np.zeros_like(values[0])])

    return Chunk(
        features=stacked([cut.features(tf.constant(batch["images"])).numpy() for batch in batches]),
        labels=stacked([batch["labels"] for batch in batches]),
        real=stacked([batch["real"] for batch in batches]),
        positions=batches[0]["positions"],
        real_images=stacked([batch["real"].sum() for batch in batches]),
        steps=len(batches),
    )


def trained(
    strategy,
    *,
    steps=6,
    head=None,
    phase=None,
    training=None,
    augmentation=None,
    weights=None,
    chunks=(),
    by_batch=False,
):
    """Train from fixed initial weights, by the adapters of the phase; returns the totals and the weights.

    `chunks`: train on cached features, each number that many steps in one call. `by_batch`: the BatchNorm normalises by
    the batch, and its statistics are among the weights, at the end.
    """
    training = training or TrainingConfig(batch_size=BATCH, label_smoothing=0.1)
    with strategy.scope():
        set_precision(training.mixed_precision)
        phase = phase or PhaseConfig(learning_rate=1e-2)
        cut = tiny_cut(head or HeadConfig(hidden=[16], dropout=0.3, l2=1e-3), lora=phase.lora, by_batch=by_batch)
        program = PhaseProgram(
            cut,
            phase=phase,
            training=training,
            class_weights=np.array([1.0, 2.0, 0.5]) if weights is None else weights,
            augmentation=Augmentation(augmentation) if augmentation else None,
            steps_per_epoch=2,
        )
        results, step = [], 0
        for length in chunks:
            chunk = chunk_of(cut, range(step, step + length))
            results.append(program.train_steps(chunk, global_step=step))
            step += length
        for step in range(steps if not chunks else 0):
            batch = global_batch(step)
            real = int(batch["real"].sum())
            parts = parts_of(batch, strategy.num_replicas_in_sync)
            results.append(program.train_step(parts, real_images=real, global_step=step))
        learned = [*cut.variables, *(statistics_of(cut.unfrozen) if by_batch else [])]
        return program.sum_over_workers(results)[0], [np.asarray(variable) for variable in learned]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        # The last batch of an epoch has no real row for the second replica.
        {"by_batch": True},
        pytest.param(
            {"phase": PhaseConfig(learning_rate=1e-2, optimizer=OptimizerConfig(name="sgd"))}, marks=pytest.mark.proof
        ),
        pytest.param(
            {"phase": PhaseConfig(learning_rate=1e-2, optimizer=OptimizerConfig(name="adamw", clip_norm=0.1))},
            marks=pytest.mark.proof,
        ),
        pytest.param({"augmentation": EVERYTHING}, marks=pytest.mark.proof),
        {"phase": PhaseConfig(learning_rate=1e-2, unfreeze=1, lora={"rank": 2, "targets": "dense"})},
    ],
    ids=["adam", "by-batch", "sgd", "adamw-clipped", "augmented", "lora"],
)
def test_two_replicas_learn_what_one_learns_within_1e_6(settings):
    one_totals, one = trained(tf.distribute.get_strategy(), **settings)
    two_totals, two = trained(two_replicas(), **settings)
    assert largest_difference(one, two) < 1e-6
    assert two_totals.images == one_totals.images == 30
    assert two_totals.mean_loss == pytest.approx(one_totals.mean_loss, rel=1e-6)


@pytest.mark.parametrize(("replicas", "chunks"), [pytest.param(1, [6], marks=pytest.mark.proof), (2, [1, 3, 2])])
def test_many_steps_a_call_on_cached_features_learn_what_steps_on_images_learn(replicas, chunks):
    """Also where a BatchNorm normalises by the batch, in each of them by that of its step."""
    strategy = two_replicas() if replicas == 2 else tf.distribute.get_strategy()
    expected_totals, expected = trained(tf.distribute.get_strategy(), by_batch=True)
    totals, weights = trained(strategy, chunks=chunks, by_batch=True)
    assert largest_difference(weights, expected) < 1e-6
    assert totals.images == expected_totals.images == 30
    assert totals.correct == expected_totals.correct
    assert totals.mean_loss == pytest.approx(expected_totals.mean_loss, rel=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float16", marks=pytest.mark.proof)])
def test_half_precision_moves_the_weights_as_full_precision_does(precision):
    """Compared by the update of the whole weight vector, to 5 %: Adam would blow rounding of tiny gradients up."""

    def update(precision):
        training = TrainingConfig(batch_size=BATCH, label_smoothing=0.1, mixed_precision=precision)
        optimizer = OptimizerConfig(name="sgd", momentum=0.0)
        phase = PhaseConfig(learning_rate=0.1, optimizer=optimizer)
        start = np.concatenate([np.ravel(v) for v in tiny_cut(HeadConfig(hidden=[16], dropout=0.3)).variables])
        _, end = trained(tf.distribute.get_strategy(), training=training, phase=phase)
        assert all(array.dtype == np.float32 for array in end)
        return np.concatenate([np.ravel(array) for array in end]) - start

    full, half = update("off"), update(precision)
    distance = np.linalg.norm(half - full) / np.linalg.norm(full)
    assert 0 < distance < 0.05


@pytest.mark.parametrize("by_batch", [False, True])
def test_one_step_of_sgd_is_the_gradient_of_the_mean_loss_over_real_rows(by_batch):
    """And statistics that are trained are those that Keras stores of these rows, with `training=True`."""
    plain = {
        "by_batch": by_batch,
        "head": HeadConfig(dropout=0.0),
        "phase": PhaseConfig(learning_rate=0.5, optimizer=OptimizerConfig(name="sgd", momentum=0.0)),
        "training": TrainingConfig(batch_size=BATCH),
        "weights": np.ones(CLASSES),
    }
    strategy = tf.distribute.get_strategy()
    _, before = trained(strategy, steps=1, **plain)
    _, after = trained(strategy, steps=2, **plain)

    cut = tiny_cut(plain["head"])
    statistics = statistics_of(cut.unfrozen) if by_batch else []
    for variable, value in zip([*cut.variables, *statistics], before, strict=True):
        variable.assign(value)
    with tf.GradientTape() as tape:
        features = cut.unfrozen(cut.features(tf.constant(IMAGES[8:10])), training=by_batch)
        logits = cut.head(features, training=False)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(LABELS[8:10], logits, from_logits=True))
    gradients = tape.gradient(loss, [variable.value for variable in cut.variables])
    expected = [value - 0.5 * gradient.numpy() for value, gradient in zip(before, gradients, strict=False)]
    assert largest_difference(after, [*expected, *(np.asarray(each) for each in statistics)]) < 1e-6


def test_clipping_bounds_the_update():
    def update(clip_norm):
        optimizer = OptimizerConfig(name="sgd", momentum=0.0, clip_norm=clip_norm)
        phase = PhaseConfig(learning_rate=1.0, optimizer=optimizer)
        start = tiny_cut(HeadConfig(hidden=[16], dropout=0.3, l2=1e-3)).variables
        _, end = trained(tf.distribute.get_strategy(), steps=1, phase=phase)
        return np.sqrt(sum(np.sum((b - np.asarray(a)) ** 2) for a, b in zip(start, end, strict=True)))

    assert update(None) > 0.1
    assert update(0.1) == pytest.approx(0.1, rel=1e-4)


def test_only_what_the_phase_trains_has_changed():
    strategy = tf.distribute.get_strategy()
    cut = tiny_cut(HeadConfig())
    frozen = [np.asarray(variable) for variable in cut.frozen.variables]
    statistics = [np.asarray(variable) for variable in cut.unfrozen.non_trainable_variables]
    program = PhaseProgram(
        cut,
        phase=PhaseConfig(),
        training=TrainingConfig(batch_size=BATCH),
        class_weights=np.ones(CLASSES),
        augmentation=None,
        steps_per_epoch=2,
    )
    program.train_step(parts_of(global_batch(0), strategy.num_replicas_in_sync), real_images=8, global_step=0)
    assert largest_difference(frozen, [np.asarray(v) for v in cut.frozen.variables]) == 0
    assert len(statistics) == 2
    assert largest_difference(statistics, [np.asarray(v) for v in cut.unfrozen.non_trainable_variables]) == 0


def test_class_weight_zero_leaves_a_class_out_of_the_gradient():
    without = np.array([1.0, 1.0, 1e-30])
    strategy = tf.distribute.get_strategy()
    _, ignored = trained(strategy, steps=1, weights=without)
    _, counted = trained(strategy, steps=1, weights=np.ones(CLASSES))
    assert largest_difference(ignored, counted) > 1e-4


def test_the_warm_up_and_decay_of_the_learning_rate():
    from transfer.training.optimizer import PhaseSchedule, build_optimizer

    cosine = PhaseSchedule(peak=1.0, kind="cosine", warmup_steps=4, total_steps=20, final_share=0.1)
    rates = [float(cosine(tf.constant(step))) for step in range(21)]
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0])
    assert rates[12] == pytest.approx(0.55)
    assert rates[20] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)

    exponential = PhaseSchedule(peak=2.0, kind="exponential", warmup_steps=0, total_steps=10, final_share=0.01)
    assert float(exponential(tf.constant(5))) == pytest.approx(0.2)

    phase = PhaseConfig(epochs=5, learning_rate=3.0, schedule=ScheduleConfig(kind="cosine", warmup_epochs=0.5))
    peak = tf.Variable(phase.learning_rate)
    optimizer = build_optimizer(phase, learning_rate=peak, steps_per_epoch=8, loss_scaling=False)
    np.testing.assert_allclose(optimizer.learning_rate, 3.0 / 4)
    optimizer.iterations.assign(40)
    np.testing.assert_allclose(optimizer.learning_rate, 3.0 * phase.schedule.final_share)

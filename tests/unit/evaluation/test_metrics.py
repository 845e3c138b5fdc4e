import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as reference

from transfer.errors import DatasetError
from transfer.evaluation.metrics import Tally, beats_commonest_class, wilson_interval
from transfer.evaluation.mistakes import worst_mistakes, worst_of
from transfer.evaluation.predictions import Predictions


def test_figures_of_four_images_are_those_computed_by_hand(predictions_of):
    predictions = predictions_of(
        [0, 0, 1, 2], [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25]]
    )
    metrics = Tally.of(predictions).metrics()

    assert metrics.images == 4
    assert metrics.accuracy == 0.5
    # -ln of 0.5, 0.25, 1 and 0.25: five halvings over four images.
    assert metrics.loss == pytest.approx(5 * math.log(2) / 4, abs=1e-7)
    assert metrics.confusion == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    first, second, third = metrics.per_class
    assert (first.precision, first.recall, first.f1, first.support, first.predicted) == (0.5, 0.5, 0.5, 2, 2)
    assert (second.precision, second.recall, second.support, second.predicted) == (0.5, 1.0, 1, 2)
    assert second.f1 == pytest.approx(2 / 3, abs=1e-12)
    assert (third.precision, third.recall, third.f1, third.support, third.predicted) == (0.0, 0.0, 0.0, 1, 0)
    assert metrics.macro.recall == pytest.approx(0.5, abs=1e-12)
    assert metrics.macro.f1 == pytest.approx((1 / 2 + 2 / 3) / 3, abs=1e-12)


@pytest.mark.parametrize(("images", "classes"), [(300, 2), (400, 4), (500, 10), (3000, 150)])
def test_figures_agree_with_scikit_learn(random_predictions, images, classes):
    predictions = random_predictions(images=images, classes=classes)
    labels, probabilities, indices = predictions.labels, predictions.probabilities, np.arange(classes)
    predicted = probabilities.argmax(axis=1)
    metrics = Tally.of(predictions).metrics()

    # float32 probabilities: a relative 1e-6.
    normalized = probabilities / probabilities.sum(axis=1, keepdims=True)
    assert metrics.loss == pytest.approx(reference.log_loss(labels, normalized, labels=indices), rel=1e-6)
    assert metrics.accuracy == pytest.approx(reference.accuracy_score(labels, predicted), abs=1e-12)
    assert sorted(metrics.top_k) == [k for k in (3, 5) if classes > k]
    for k, share in metrics.top_k.items():
        assert share == pytest.approx(reference.top_k_accuracy_score(labels, probabilities, k=k, labels=indices))
    assert metrics.macro.f1 == pytest.approx(reference.f1_score(labels, predicted, average="macro"), abs=1e-12)
    assert metrics.macro.recall == pytest.approx(reference.balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert metrics.confusion == reference.confusion_matrix(labels, predicted, labels=indices).tolist()


@pytest.mark.parametrize(
    ("answers", "beats"), [([0, 0, 0, 0, 0], False), ([0, 0, 0, 1, 0], True), ([1, 1, 0, 1, 1], False)]
)
def test_a_network_has_to_be_right_more_often_than_the_commonest_class(predictions_of, answers, beats):
    metrics = Tally.of(predictions_of([0, 0, 0, 1, 1], np.eye(2)[answers], ["cat", "dog"])).metrics()
    assert metrics.commonest_class.name == "cat"
    assert metrics.commonest_class_accuracy == 0.6
    assert beats_commonest_class(metrics) == beats


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 40), (40, 40), (37, 40), (912, 1000)])
def test_interval_of_the_accuracy_is_wilsons(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    interval = wilson_interval(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_interval_touches_its_ends_exactly_when_all_or_none_are_right():
    assert wilson_interval(0, 60).low == 0.0
    assert wilson_interval(60, 60).high == 1.0


def test_class_without_images_is_not_measured_and_does_not_lower_the_averages(predictions_of):
    metrics = Tally.of(predictions_of([0, 1, 1], [[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.1, 0.2, 0.7]])).metrics()
    absent = metrics.per_class[2]
    assert (absent.support, absent.predicted) == (0, 1)
    assert (absent.precision, absent.recall, absent.f1) == (None, None, None)
    assert metrics.macro.recall == pytest.approx(0.75, abs=1e-12)
    assert metrics.confusion[2] == [0, 0, 0]


def test_one_image_is_enough(predictions_of):
    metrics = Tally.of(predictions_of([1], [[0.25, 0.75]])).metrics()
    assert metrics.accuracy == 1.0
    assert metrics.confusion == [[0, 0], [0, 1]]
    assert metrics.top_k == {}


def test_all_right_and_certain_is_a_loss_of_zero_without_mistakes(predictions_of):
    predictions = predictions_of([0, 1, 2], np.eye(3))
    metrics = Tally.of(predictions).metrics()
    assert (metrics.accuracy, metrics.loss, metrics.macro.f1) == (1.0, 0.0, 1.0)
    assert math.copysign(1, metrics.loss) == 1
    assert worst_mistakes(predictions, 10, digests=predictions.keys) == []


def test_all_wrong_and_certain_is_a_finite_loss(predictions_of):
    predictions = predictions_of([0, 1, 2], np.roll(np.eye(3), 1, axis=1))
    metrics = Tally.of(predictions).metrics()
    assert (metrics.accuracy, metrics.macro.f1) == (0.0, 0.0)
    assert metrics.loss == pytest.approx(-math.log(1e-7), abs=1e-9)
    assert len(worst_mistakes(predictions, 10, digests=predictions.keys)) == 3


def test_right_image_is_among_the_top_k_even_when_all_probabilities_are_equal(predictions_of):
    metrics = Tally.of(predictions_of([0, 2, 3, 9], np.full((4, 10), 0.1))).metrics()
    assert metrics.accuracy == 0.25
    assert metrics.top_k == {3: 0.5, 5: 0.75}


def test_a_class_of_probability_zero_is_not_among_the_top_k_however_few_others_there_are(predictions_of):
    assert Tally.of(predictions_of([0, 2], [[0.0, 0.0, 0.7, 0.3]] * 2)).metrics().top_k == {3: 0.5}


@pytest.mark.parametrize("seed", range(20))
def test_what_is_counted_of_parts_is_what_is_counted_of_the_whole(random_predictions, seed):
    generator = np.random.default_rng(seed)
    # Probabilities of a few values have many ties; one wrong image in two, of few pairs, has more than six of a pair.
    whole = random_predictions(images=int(generator.integers(1, 400)), classes=int(generator.integers(2, 9)), seed=seed)
    rounded = np.round(whole.probabilities, 1) + 0.01
    whole = replace(whole, probabilities=(rounded / rounded.sum(axis=1, keepdims=True)).astype(np.float32))
    edges = np.sort(generator.integers(0, len(whole.keys) + 1, int(generator.integers(0, 12))))
    tally, mistakes, count = Tally(whole.classes), [], int(generator.integers(1, 40))
    for rows in np.split(generator.permutation(len(whole.keys)), edges):
        keys = [whole.keys[row] for row in rows]
        part = Predictions(keys, whole.labels[rows], whole.probabilities[rows], whole.classes)
        tally += Tally.of(part)
        mistakes = worst_of([*worst_mistakes(part, count, digests=part.keys), *mistakes], count)
    assert tally.metrics() == Tally.of(whole).metrics()
    assert mistakes == worst_mistakes(whole, count, digests=whole.keys)


def test_one_confused_pair_leaves_room_for_others_among_the_worst_mistakes(predictions_of):
    sure = [0.99 - 0.01 * row for row in range(8)] + [0.6]
    rows = [[1 - value, value, 0] for value in sure[:8]] + [[0.4, 0, sure[8]]]
    predictions = predictions_of([0] * 9, rows)
    found = worst_mistakes(predictions, 7, digests=predictions.keys)
    assert [mistake.key for mistake in found] == [f"image-{row}.png" for row in (0, 1, 2, 3, 4, 5, 8)]
    assert len(worst_mistakes(predictions, 9, digests=predictions.keys)) == 9


def test_worst_mistakes_come_most_confident_first_and_ties_never_vary():
    probabilities = np.array(
        [[0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.2, 0.7, 0.1], [0.1, 0.7, 0.2], [0.9, 0.05, 0.05]], np.float32
    )
    rows = [("d", 0), ("c", 0), ("b", 0), ("z", 0), ("right", 0)]
    found = []
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]):
        keys, labels = zip(*(rows[row] for row in order), strict=True)
        predictions = Predictions(list(keys), np.array(labels, np.int32), probabilities[order], ["x", "y", "w"])
        found.append(worst_mistakes(predictions, 3, digests=predictions.keys))
    assert [mistake.key for mistake in found[0]] == ["z", "b", "c"]
    assert found[0] == found[1]
    first = found[0][0]
    assert (first.truth, first.predicted) == ("x", "y")
    assert (first.truth_probability, first.predicted_probability) == pytest.approx((0.1, 0.7), abs=1e-7)


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [
        (np.zeros(3, np.int32), np.full((2, 2), 0.5, np.float32)),
        (np.zeros(2, np.int32), np.full((2, 3), 1 / 3, np.float32)),
        (np.zeros(2, np.int64), np.full((2, 2), 0.5, np.float32)),
        (np.zeros(2, np.int32), np.full((2, 2), 0.5, np.float64)),
        (np.zeros((2, 1), np.int32), np.full((2, 2), 0.5, np.float32)),
    ],
)
def test_parts_that_do_not_fit_together_are_refused_with_both_shapes(labels, probabilities):
    with pytest.raises(DatasetError, match=r"expected (int32 \[2\]|float32 \[2, 2\]) for 2 keys and 2 classes"):
        Predictions(["a", "b"], labels, probabilities, ["x", "y"])


@pytest.mark.parametrize("label", [-1, 2])
def test_label_outside_the_classes_is_refused_by_the_images_name(predictions_of, label):
    with pytest.raises(DatasetError, match=f"`image-1.png` has label {label}, expected 0 to 1"):
        predictions_of([0, label], [[0.5, 0.5], [0.5, 0.5]])


@pytest.mark.parametrize("row", [[3.0, -2.0], [0.9, 0.9], [math.nan, 1.0], [math.inf, 0.0]])
def test_logits_and_broken_numbers_are_refused_by_the_images_name(predictions_of, row):
    with pytest.raises(DatasetError, match=r"`image-1\.png` has class probabilities"):
        predictions_of([0, 0], [[0.5, 0.5], row])

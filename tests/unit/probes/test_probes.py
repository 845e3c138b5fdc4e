"""Probes of features against what they stand for, computed naively."""

import numpy as np
import pytest
from scipy.optimize import minimize

from transfer.probes.logme import logme
from transfer.probes.neighbours import nearest_neighbours
from transfer.probes.ridge import _decomposed, fit_ridge, left_out_scores
from transfer.probes.sample import stratified_rows


def clouds(rows, size, classes=3, seed=0, spread=1.0):
    """Features around a centre for each class, and labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    return random.normal(size=(classes, size))[labels] + random.normal(size=(rows, size)) * spread, labels


@pytest.mark.parametrize(("rows", "size"), [(30, 6), (12, 40)], ids=["more rows", "more features"])
@pytest.mark.parametrize("penalty", [0.03, 7.0])
def test_leaving_one_out_in_closed_form_is_fitting_without_each_image(rows, size, penalty):
    features, labels = clouds(rows, size)
    wanted = np.eye(3)[labels]
    found = left_out_scores(*_decomposed(features - features.mean(axis=0)), wanted, penalty)
    for out in range(rows):
        others = np.arange(rows) != out
        mean, offset = features[others].mean(axis=0), wanted[others].mean(axis=0)
        x = features[others] - mean
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(size), x.T @ (wanted[others] - offset))
        np.testing.assert_allclose(found[out], (features[out] - mean) @ weights + offset, atol=1e-8)


def test_a_ridge_probe_solves_its_equations_and_chooses_its_penalty_by_leave_one_out():
    features, labels = clouds(60, 5, spread=0.8)
    features[:, 2] = 4.0  # never changes
    probe = fit_ridge(features * [1, 1000, 1, 1e-4, 1], labels + 2)
    x = (features - features.mean(axis=0)) / np.where(features.std(axis=0) > 0, features.std(axis=0), 1)
    wanted = np.eye(3)[labels]
    weights = np.linalg.solve(x.T @ x + probe.penalty * np.eye(5), x.T @ (wanted - wanted.mean(axis=0)))
    np.testing.assert_allclose(probe.weights, weights, atol=1e-8)
    assert set(probe.predict(features)) <= {2, 3, 4}
    assert np.mean(probe.left_out == labels + 2) > 0.8


def test_the_nearest_neighbours_are_those_of_a_full_search_also_over_several_blocks():
    features, labels = clouds(40, 4, spread=1.5)
    queries, _ = clouds(700, 4, seed=1, spread=1.5)
    found = nearest_neighbours(features, labels, queries)
    for query, predicted in zip(queries, found, strict=True):
        angles = features @ query / np.linalg.norm(features, axis=1)
        nearest = labels[np.argsort(-angles, kind="stable")[:5]].tolist()
        most = max(nearest.count(label) for label in nearest)
        assert predicted == next(label for label in nearest if nearest.count(label) == most)


def test_each_image_is_left_out_of_its_own_neighbours():
    features, labels = clouds(600, 4, spread=1.5)
    found = nearest_neighbours(features, labels)
    for out in (0, 1, 511, 512, 599):
        others = np.arange(600) != out
        assert found[out] == nearest_neighbours(features[others], labels[others], features[[out]])[0]


@pytest.mark.parametrize(("rows", "size"), [(40, 6), (15, 30)], ids=["more rows", "more features"])
def test_logme_is_the_largest_evidence_of_the_published_formula(rows, size):
    features, labels = clouds(rows, size)
    reached = []
    for name in range(3):
        target = (labels == name).astype(float)

        def published(logs, target=target):
            alpha, beta = np.exp(logs)
            precision = alpha * np.eye(size) + beta * features.T @ features
            mean = beta * np.linalg.solve(precision, features.T @ target)
            return (
                rows / 2 * np.log(beta)
                + size / 2 * np.log(alpha)
                - rows / 2 * np.log(2 * np.pi)
                - beta / 2 * np.sum((features @ mean - target) ** 2)
                - alpha / 2 * np.sum(mean**2)
                - np.linalg.slogdet(precision)[1] / 2
            )

        found = minimize(lambda logs: -published(logs), [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6})
        reached.append(-found.fun / rows)
    assert logme(features, labels) == pytest.approx(np.mean(reached), abs=1e-6)
    assert logme(features, labels) > logme(np.random.default_rng(3).normal(size=(rows, size)), labels)


def test_a_sample_has_each_class_by_its_share_and_begins_with_every_smaller_sample():
    labels = np.repeat([4, 7, 9], [600, 300, 3])
    digests = np.random.default_rng(0).integers(0, 2**63, len(labels)).astype(np.uint64)
    rows = stratified_rows(labels, digests, 90)
    np.testing.assert_allclose(np.bincount(labels[rows])[[4, 7, 9]], [60, 30, 1], atol=1)
    np.testing.assert_array_equal(stratified_rows(labels, digests, 30), rows[:30])
    assert set(labels[rows[:3]]) == {4, 7, 9}
    assert len(set(stratified_rows(labels, digests, 10_000))) == 903
    order = np.random.default_rng(1).permutation(len(labels))
    assert set(order[stratified_rows(labels[order], digests[order], 90)]) == set(rows)

"""The estimator of scikit-learn, by scikit-learn's own checks.

`check_estimator` itself stops after the first check for estimators that take no matrix of features ("requires input of
type …"); these are all of its checks that make no such matrix.
"""

import pytest
from sklearn.utils import estimator_checks

import transfer
from transfer.errors import DatasetError

CHECKS = [
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
]


@pytest.mark.parametrize("check", CHECKS)
def test_scikit_learn_finds_nothing_wrong(check):
    estimator = transfer.ImageClassifier()
    getattr(estimator_checks, check)("ImageClassifier", estimator)


def test_what_is_not_fitted_says_so():
    with pytest.raises(ValueError, match="not fitted yet"):
        transfer.ImageClassifier().predict(["a.jpg"])


def test_labels_that_look_alike_are_refused_before_anything_is_trained():
    classifier = transfer.ImageClassifier()
    with pytest.raises(DatasetError, match="no names of classes that can be told apart"):
        classifier.fit(["a.jpg", "b.jpg"], ["cat", "cat "])
    assert not hasattr(classifier, "classes_")

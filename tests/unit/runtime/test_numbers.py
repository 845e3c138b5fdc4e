"""Figures in words."""

import pytest

from transfer.runtime.numbers import duration, many, percents_apart, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (4.249, "4.2 s"),
        (9.96, "10 s"),
        (12.4, "12 s"),
        (59.7, "1 min 0 s"),
        (184.2, "3 min 4 s"),
        (3599.9, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_have_the_units_that_people_count_in(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("size_bytes", "text"), [(1023, "1,023 bytes"), (1536, "1.5 KiB"), (3 * 1024**3, "3.0 GiB")])
def test_sizes_have_binary_units(size_bytes, text):
    assert size(size_bytes) == text


def test_counts_have_separators_and_a_plural():
    assert (many(1, "image"), many(1204, "image")) == ("1 image", "1,204 images")


def test_a_share_beside_its_limit_has_as_many_digits_as_tell_them_apart():
    assert percents_apart(0.206, 0.2) == ("20.6 %", "20.0 %")
    assert percents_apart(0.20004, 0.2) == ("20.004 %", "20.000 %")

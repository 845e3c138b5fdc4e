"""Images of a program, put to a model that answers with their brightness."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.sourcing import write_file
from transfer.api.images import predictions
from transfer.config import DatasetConfig, ImageInput
from transfer.errors import DatasetError


def png(level):
    target = io.BytesIO()
    Image.new("RGB", (4, 4), (level, level, level)).save(target, "PNG")
    return target.getvalue()


@pytest.fixture
def predict(folder_storage):
    def shares(batches):
        bright = (pixels.mean(axis=(1, 2, 3)) / 255 for _, pixels in batches)
        return (np.stack([1 - share, share], axis=1) for share in bright)

    def predict(images):
        limits = DatasetConfig(source="images")
        options = {"image_input": ImageInput(4, 4), "limits": limits, "storage": folder_storage}
        return predictions(images, classes=["dark", "bright"], answer=shares, **options)

    return predict


def reasons(answers):
    return [(each.error or "").partition(":")[0] or each.label for each in answers]


def test_a_path_where_nothing_is_ends_a_call_only_if_it_was_given_alone(predict, tmp_path):
    there = tmp_path / "there.png"
    write_file(there, png(250))
    (tmp_path / "empty").mkdir()
    nowhere = tmp_path / "nowhere.png"
    answers = predict([nowhere, there, tmp_path / "empty"])
    assert reasons(answers) == ["missing", "bright", "missing"]
    assert [each.image for each in answers] == [str(nowhere), str(there), str(tmp_path / "empty")]
    assert reasons(predict([nowhere])) == ["missing"]
    for alone in (nowhere, tmp_path / "empty"):
        with pytest.raises(DatasetError, match="There are no files in"):
            predict(alone)


def test_an_opened_file_that_is_cut_short_has_an_error_in_a_list(predict):
    exif = Image.Exif()
    exif[0x0112] = 6
    target = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(target, "JPEG", exif=exif)
    cut = target.getvalue()[:-900]
    assert reasons(predict([Image.open(io.BytesIO(cut)), Image.new("L", (4, 4), 0)])) == ["corrupt", "dark"]
    with pytest.raises(DatasetError, match=r"#0 cannot be answered \(corrupt\)"):
        predict(Image.open(io.BytesIO(cut)))


def test_what_is_no_image_ends_a_call_also_in_a_list(predict):
    for given, said in {3: "is a int", "https://example.org/a.png": "at https://, which is not read"}.items():
        with pytest.raises(DatasetError, match=said):
            predict([png(250), given])

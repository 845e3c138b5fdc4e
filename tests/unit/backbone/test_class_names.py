import pytest

from transfer.backbone.class_names import BACKGROUND, given_names, names_of_outputs
from transfer.errors import ConfigError


def test_networks_of_imagenet_have_its_names_with_or_without_a_background():
    names = names_of_outputs(None, 1000, of="it")
    assert [names[index] for index in (0, 105, 999)] == ["tench", "koala", "toilet tissue"]
    assert len(set(names)) == 1000
    assert names_of_outputs(None, 1001, of="it") == [BACKGROUND, *names]


def test_own_names_come_from_a_list_or_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("cat\nwild dog \n", encoding="utf-8")
    assert given_names(None) is None
    assert given_names(["cat", "wild dog"]) == given_names(str(tmp_path / "names.txt")) == ["cat", "wild dog"]
    # One output tells two classes apart.
    assert names_of_outputs(["cat", "wild dog"], 1, of="it") == names_of_outputs(["cat", "wild dog"], 2, of="it")


@pytest.mark.parametrize(
    ("names", "outputs", "said"),
    [
        (None, 1280, r"it has 1,280 outputs, and nothing names its classes.*publish.classes.*transfer train"),
        (["cat", "dog"], 3, r"publish.classes has 2 names, and it has 3 classes"),
        (["cat", ""], 2, r"no name for class 1 of 2"),
        (["cat", "dog", "cat"], 3, r"the name `cat` twice"),
        ("nowhere.txt", 2, r"publish.classes is nowhere.txt, which cannot be read"),
    ],
    ids=["features", "too few", "empty", "twice", "no file"],
)
def test_names_that_do_not_fit_are_refused(names, outputs, said):
    with pytest.raises(ConfigError, match=said):
        names_of_outputs(given_names(names), outputs, of="it")

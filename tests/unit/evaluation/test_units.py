"""The images of units."""

from tests.sourcing import LONG_AGO_S, config_of, image, write_classes, write_file
from transfer.dataset.index import ImageIndex
from transfer.dataset.ingest import ingest
from transfer.evaluation.units import INDEXED, UnitImages, units_of
from transfer.storage import open_store


def test_two_images_that_are_stored_under_one_key_have_their_own_pictures(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", cat=2, dog=2)
    config = config_of(source, folder_storage, validation=0.0)
    store = open_store(config.storage)
    ingest(config, store)
    # The image keeps the key that it was stored under, and another file has that name now.
    write_file(source / "cat/moved.png", image(1))
    write_file(source / "cat/00001.png", image(55), at_s=LONG_AGO_S + 5)
    dataset = ingest(config, store)
    (unit,) = units_of(dataset.shards_of("train"))
    for whole in (True, False):
        images = UnitImages(store, ImageIndex(store, dataset, INDEXED), unit, whole=whole)
        assert images.keys.count("cat/00001.png") == 2
        pictures = images.pictures(images.digests)
        assert [pictures[digest].read(store) for digest in images.digests] == list(images)

"""From a trained run to a published model that answers raw bytes."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image

from tests.attention import on_attention
from tests.digits import digits_config, hold_out, ingest_some_digits, write_some_digits
from tests.reports import load_report
from tests.unit.registry.test_export_proof import Tampered
from transfer import ensure, jobs, load_model
from transfer.cli.main import app
from transfer.config import ImageInput
from transfer.config.reference import render
from transfer.dataset.batches import decoded
from transfer.dataset.index import ImageIndex
from transfer.ensure import evaluated, fit, read_report
from transfer.errors import AlreadyExistsError, ConfigError, DatasetError, ParityError, RegistryError, TrainingError
from transfer.evaluation.evaluate import evaluate_run
from transfer.evaluation.stored import StoredReport
from transfer.evaluation.units import INDEXED, UnitImages, first_images, units_of
from transfer.registry import publish
from transfer.registry.export_proof import LOADERS, prove_parity
from transfer.registry.promote import promote
from transfer.registry.published_model import PublishedModel
from transfer.registry.serving_answers import answers_of_serving
from transfer.registry.versions import download_version, list_versions, load_version
from transfer.storage import open_store
from transfer.training.run import open_run
from transfer.training.shared_models import restore_model


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    source = write_some_digits(folder / "images")
    config = digits_config(source, str(folder / "storage"))
    return config, jobs.train(config)


@pytest.fixture(scope="module")
def served(outcome, tmp_path_factory):
    """The published model, downloaded and loaded as a server would."""
    config, _ = outcome
    store = open_store(config.storage)
    folder = tmp_path_factory.mktemp("served")
    return tf.saved_model.load(str(download_version(store, load_version(store, "digits"), folder)))


@pytest.fixture(scope="module")
def held_out(outcome):
    _, done = outcome
    return first_images(done.run.store, done.dataset.shards_of("test"), 1000)


def test_the_main_job_ends_with_a_promoted_version_and_a_report(outcome):
    config, done = outcome
    store = open_store(config.storage)
    assert load_version(store, "digits") == done.version
    assert done.version.provenance.run == done.run.id
    proof = done.version.provenance.parity
    assert proof.largest_difference == max(proof.by_loader.values()) <= 1e-5
    assert set(proof.by_loader) == {loader.name for loader in LOADERS}
    assert Path(done.report_uri.removeprefix("file://")).read_text().startswith("<!doctype html>")
    assert done.report.metrics.accuracy > 0.3
    # Of three epochs the best and the last.
    assert 1 <= len(done.run.checkpoints.numbers()) <= 2


def names_but_of_what_was_seen(store):
    # Files that were written a moment before an ingest are noted by the next one.
    return [item.name for item in store.list() if not item.name.startswith("seen/")]


def test_what_adapters_learned_is_in_the_kernels_of_the_published_model(outcome, tmp_path):
    """The proof's fresh processes know nothing of adapters, and answer what was evaluated."""
    config, _ = outcome
    phases = [{"unfreeze": "all", "epochs": 2, "learning_rate": 1e-2, "lora": {"rank": 2, "targets": "all"}}]
    adapted = on_attention(config.model_copy(update={"name": "adapted"}), tmp_path, phases)
    done = jobs.train(adapted)
    assert done.version.provenance.parity.largest_difference <= 1e-5
    assert set(done.version.provenance.parity.by_loader) == {loader.name for loader in LOADERS}


def test_repeating_the_main_job_trains_and_publishes_nothing_again(outcome):
    config, done = outcome
    store = open_store(config.storage)
    before = names_but_of_what_was_seen(store)
    again = jobs.train(config)
    assert again.version == done.version
    assert names_but_of_what_was_seen(store) == before


def test_the_published_model_answers_what_was_evaluated(outcome, served, held_out):
    _, done = outcome
    _, predictions = load_report(done.run, 1)
    for size in (1, 7, len(held_out)):
        answers = served.signatures["serving_default"](image_bytes=tf.constant(held_out[:size]))
        np.testing.assert_allclose(answers["probabilities"], predictions.probabilities[:size], atol=1e-5)
    names = [name.decode() for name in answers["class_name"].numpy()]
    assert names == [done.dataset.classes[index] for index in predictions.probabilities.argmax(axis=1)]
    np.testing.assert_array_equal(answers["class_index"], predictions.probabilities.argmax(axis=1))


def test_the_report_counts_what_the_predictions_say(outcome):
    _, done = outcome
    report, predictions = load_report(done.run, 1)
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    assert report.metrics.accuracy == pytest.approx(right.mean())
    truth = predictions.probabilities[np.arange(len(right)), predictions.labels]
    assert report.metrics.loss == pytest.approx(-np.log(truth).mean(), rel=1e-5)


def test_the_pixels_signature_answers_the_same_for_decoded_images(served, held_out):
    images = np.stack([tf.io.decode_png(image, channels=3).numpy() for image in held_out[:5]]).astype(np.float32)
    by_pixels = served.signatures["pixels"](images=tf.constant(images))
    by_bytes = served.signatures["serving_default"](image_bytes=tf.constant(held_out[:5]))
    np.testing.assert_allclose(by_pixels["probabilities"], by_bytes["probabilities"], atol=1e-6)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP", "JPEG"])
def test_every_served_format_is_answered_alike(served, held_out, kind):
    import io

    from PIL import Image

    with Image.open(io.BytesIO(held_out[0])) as image:
        buffer = io.BytesIO()
        options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
        image.convert("L").convert("RGB").save(buffer, kind, **options)
    answer = served.signatures["serving_default"](image_bytes=tf.constant([held_out[0], buffer.getvalue()]))
    first, second = answer["probabilities"].numpy()
    # JPEG and GIF's palette lose a little.
    np.testing.assert_allclose(first, second, atol=0.05 if kind in {"JPEG", "GIF"} else 1e-6)


def test_class_names_and_provenance_are_inside_the_model(outcome):
    config, done = outcome
    store = open_store(config.storage)
    inside = json.loads(store.read(f"{done.version.folder}/assets.extra/transfer.json"))
    assert inside["classes"] == done.dataset.classes
    assert inside["provenance"]["dataset"] == done.dataset.reference
    assert "storage" not in inside["provenance"]["config"]


def test_an_export_that_answers_differently_is_refused(outcome, held_out, tmp_path):
    config, done = outcome
    store = open_store(config.storage)
    exported = download_version(store, done.version, tmp_path)
    _, predictions = load_report(done.run, 1)
    expected = predictions.probabilities[:8].copy()
    assert max(prove_parity(exported, held_out[:8], expected).values()) <= 1e-5
    expected[3] = np.roll(expected[3], 1)
    with pytest.raises(ParityError, match="differ from the evaluated model's"):
        prove_parity(exported, held_out[:8], expected)
    (exported / "saved_model.pb").write_bytes(b"nonsense")
    with pytest.raises(ParityError, match=r"does not answer, asked by tf.saved_model.load: .*corrupt"):
        prove_parity(exported, held_out[:8], expected)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("range of files", r"asked by tf.saved_model.load, differ"),
        pytest.param(
            "Keras's variables",
            r"asked by a session, as in TensorFlow Serving: .*Could not find variable",
            marks=pytest.mark.proof,
        ),
        pytest.param("range of pixels", r"asked by the signature `pixels`, differ", marks=pytest.mark.proof),
    ],
)
def test_what_a_loader_would_answer_otherwise_is_not_published(outcome, monkeypatch, mistake, said):
    config, done = outcome
    monkeypatch.setattr(publish, "export", lambda model, folder, **_: Tampered(model, mistake).save(folder))
    with pytest.raises(ParityError, match=said):
        jobs.publish(config, run_id=done.run.id, again=True)
    assert [version.number for version in list_versions(open_store(config.storage), "digits")] == [1]


def test_predict_answers_good_images_and_lists_bad_ones(outcome, held_out, tmp_path):
    config, done = outcome
    images = tmp_path / "incoming"
    (images / "deep").mkdir(parents=True)
    for index, data in enumerate(held_out[:40]):
        (images / f"deep/{index:03d}.png").write_bytes(data)
    (images / "empty.png").write_bytes(b"")
    (images / "text.png").write_bytes(b"not an image")
    (images / "cut.png").write_bytes(held_out[0][:80])
    answer = jobs.predict(config, images=str(images), output=str(tmp_path / "out/answers.parquet"))
    assert answer.predictions is None
    assert (answer.images, answer.errors, answer.version) == (43, 3, done.version.number)
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "out/answers.parquet").to_pylist()}
    assert {key for key, row in rows.items() if row["error"]} == {"empty.png", "text.png", "cut.png"}
    _, predictions = load_report(done.run, 1)
    for index in range(40):
        found = rows[f"deep/{index:03d}.png"]
        np.testing.assert_allclose(found["probabilities"], predictions.probabilities[index], atol=1e-5)
        assert found["class_name"] == done.dataset.classes[found["class_index"]]
    with pytest.raises(AlreadyExistsError, match="--overwrite"):
        jobs.predict(config, images=str(images), output=str(tmp_path / "out/answers.parquet"))
    again = jobs.predict(config, images=str(images), output=str(tmp_path / "out/answers.parquet"), overwrite=True)
    assert again == answer


def test_the_lines_on_a_reports_page_answer_an_image(outcome, held_out, tmp_path, monkeypatch, capsys):
    _, done = outcome
    html = Path(done.report_uri).read_text()
    (tmp_path / "photo.jpg").write_bytes(held_out[0])
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(unescape(html.partition("<pre>")[2].partition("</pre>")[0]), {})  # noqa: S102 - our own lines
    _, predictions = load_report(done.run, 1)
    expected = done.dataset.classes[predictions.probabilities[0].argmax()]
    assert f"label='{expected}'" in capsys.readouterr().out


def test_predict_shows_what_it_answers_for_a_few_images(outcome, held_out, tmp_path):
    config, done = outcome
    for index, data in enumerate((b"not an image", held_out[0], b"", held_out[1])):
        (tmp_path / f"{index}.png").write_bytes(data)
    places = [str(tmp_path / f"{index}.png") for index in (1, 0, 3, 2)]
    answer = jobs.predict(config, images=places)
    assert [row["key"] for row in answer.predictions] == places
    assert [row["error"] is None for row in answer.predictions] == [True, False, True, False]
    assert (answer.images, answer.errors, answer.output) == (4, 2, None)
    _, predictions = load_report(done.run, 1)
    probabilities = answer.predictions[2]["probabilities"]
    np.testing.assert_allclose(list(probabilities.values()), predictions.probabilities[1], atol=1e-5)
    assert list(probabilities) == done.dataset.classes
    assert answer.predictions[2]["confidence"] == max(probabilities.values())

    # The configuration does not transcode. What no graph decodes is answered all the same, as Python programs are.
    scan = tmp_path / "scan.tif"
    Image.open(io.BytesIO(held_out[1])).save(scan)
    (of_command,) = jobs.predict(config, images=str(scan)).predictions
    (of_python,) = load_model("digits", config.storage).predict(scan)
    for found in (of_command["probabilities"], of_python.probabilities):
        np.testing.assert_allclose(list(found.values()), predictions.probabilities[1], atol=1e-5)
    scan.unlink()
    for index in range(4, 51):
        (tmp_path / f"{index}.png").write_bytes(held_out[0])
    with pytest.raises(ConfigError, match="There are 51 images, and at most 50 are answered without --output"):
        jobs.predict(config, images=str(tmp_path))


def test_predict_fails_where_every_image_did_and_says_how_many_did(outcome, held_out, tmp_path, capfd):
    file, bad, good = tmp_path / "config.yaml", tmp_path / "bad.png", tmp_path / "good.png"
    file.write_text(render(outcome[0]))
    bad.write_bytes(b"not an image")
    good.write_bytes(held_out[0])

    def predict(*images):
        with pytest.raises(SystemExit) as ended:
            app(["predict", str(file), *(part for image in images for part in ("--images", str(image)))])
        return ended.value.code, capfd.readouterr()

    code, said = predict(bad, good)
    assert (code, "1 of 2 images" in said.out) == (0, True)
    code, said = predict(bad)
    assert code == 4
    assert "None of the images could be answered: 1 of 1 failed." in said.err
    assert "not_an_image" in said.out


def test_predict_without_images_or_version_says_so(outcome, tmp_path):
    config, _ = outcome
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="no files"):
        jobs.predict(config, images=str(tmp_path / "none"), output=str(tmp_path / "a.parquet"))
    with pytest.raises(RegistryError, match="has no version 9"):
        jobs.predict(config, images=str(tmp_path), output=str(tmp_path / "a.parquet"), version=9)


def test_an_unfinished_run_cannot_be_evaluated_and_an_unevaluated_one_not_published(outcome, tmp_path):
    config, done = outcome
    run = open_run(open_store(config.storage), config, done.dataset, run_id="unfinished")
    with pytest.raises(TrainingError, match="is not finished"):
        jobs.evaluate(config, run_id=run.id)
    with pytest.raises(RegistryError, match="has no report"):
        jobs.publish(config, run_id=run.id)
    with pytest.raises(ConfigError, match="is one of `digits`, and `name` in the configuration is `other`"):
        jobs.publish(config.model_copy(update={"name": "other"}), run_id=run.id)
    assert len(list(list_versions(open_store(config.storage), "digits"))) == 1


def test_evaluating_again_adds_a_report_and_keeps_the_first(outcome):
    config, done = outcome
    newest = done.run.newest_report("test")
    report, uri = jobs.evaluate(config, run_id=done.run.id, split="validation")
    assert report.split == "validation"
    assert uri != done.report_uri
    # A look at another split is not what the run is judged by from now on.
    assert evaluated(done.run, done.dataset, gate_asks=False) == newest
    assert load_report(done.run, 1)[0] == done.report


def test_the_published_model_needs_neither_this_project_nor_keras(outcome, tmp_path):
    config, done = outcome
    store = open_store(config.storage)
    folder = download_version(store, done.version, tmp_path / "model")
    code = (
        "import sys; sys.modules['keras'] = None;"
        "import tensorflow as tf; m = tf.saved_model.load(sys.argv[1]);"
        "print(sorted(m.signatures)); assert 'transfer' not in sys.modules"
    )
    finished = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "['embeddings', 'fitted', 'pixels', 'serving_default']"


def test_what_an_evaluation_that_was_killed_halfway_left_does_not_stand_in_the_way_of_the_next(outcome):
    _, done = outcome
    number = done.run.newest_report() + 1
    done.run.store.put(f"{done.run.folder}/reports/{number:08d}/report.json", b"of one that rounded otherwise")
    assert evaluate_run(done.run, done.dataset) == number + 1
    report, _ = load_report(done.run, number + 1)
    assert report.validation_accuracy == report.history[-1].validation_accuracy
    # By this `transfer runs gc` knows that somebody may be at work on the run.
    assert datetime.fromisoformat(done.run.reports.read(number + 1)["at"]).tzinfo


def test_a_run_is_published_again_as_a_plain_graph_and_takes_only_its_own_place(outcome):
    config, done = outcome
    store = open_store(config.storage)
    plain = config.model_copy(update={"publish": config.publish.model_copy(update={"graph": "plain"})})
    again = jobs.publish(plain, run_id=done.run.id, again=True).version
    assert again.number == done.version.number + 1
    assert again.provenance.parity.largest_difference <= 1e-5
    # It is proved against answers of the same graph.
    report, _ = load_report(done.run, again.provenance.report)
    assert (report.graph, report.rounds_coarsely) == ("plain", False)
    assert load_version(store, "digits") == again
    assert load_version(store, "digits", done.version.number) == done.version

    promote(store, done.version, reason="somebody went back to it")
    third = jobs.publish(plain, run_id=done.run.id, again=True)
    assert (third.version.number, third.promoted) == (again.number + 1, False)
    assert load_version(store, "digits") == done.version


def test_a_run_whose_fast_evaluation_rounded_too_coarsely_is_evaluated_anew_by_the_graph(outcome, monkeypatch):
    _, done = outcome
    fast = evaluate_run(done.run, done.dataset)
    assert not load_report(done.run, fast)[0].is_exact

    read = StoredReport.predictions

    def coarse(stored, *rows):
        found = read(stored, *rows)
        flatter = 0.99 * found.probabilities + 0.01 / len(found.classes)
        return found if stored.report.is_exact else replace(found, probabilities=flatter)

    monkeypatch.setattr(StoredReport, "predictions", coarse)
    version = ensure.published(done.run, report=fast, again=True)
    report, _ = load_report(done.run, version.provenance.report)
    assert report.is_exact
    assert version.provenance.report > fast
    assert version.provenance.parity.largest_difference <= 1e-5


def test_a_run_that_was_evaluated_when_every_class_was_answered_is_evaluated_anew(tmp_path, monkeypatch):
    source, dataset = ingest_some_digits(tmp_path)
    dataset = hold_out(source, dataset, "3")
    config = digits_config(source, str(tmp_path / "storage"))
    run = open_run(open_store(config.storage), config, dataset)
    fit(run, dataset)
    before = evaluate_run(run, dataset)

    def of_earlier_release(run, number):
        report, uri = read_report(run, number)
        return (report.model_copy(update={"untrained_classes": ()}) if number == before else report), uri

    monkeypatch.setattr(ensure, "read_report", of_earlier_release)
    version = ensure.published(run, report=before)
    assert version.untrained_classes == ("3",)
    assert version.provenance.report > before
    assert version.provenance.parity.largest_difference <= 1e-5


def test_a_model_that_decodes_otherwise_than_this_release_answers_by_its_own_decoder(outcome, held_out, tmp_path):
    _, done = outcome
    model, _ = restore_model(done.run, done.dataset)
    Tampered(model, "range of files").save(tmp_path / "model")
    other = PublishedModel(done.version, tmp_path / "model")
    other.__dict__["image_input"] = ImageInput(32, 32)
    pixels = np.stack([decoded(image, image_input=ImageInput(32, 32)) for image in held_out[:5]])
    (answers,) = other.answers(iter([(held_out[:5], pixels)]), engine="auto")
    np.testing.assert_array_equal(answers, other.answer(held_out[:5])["probabilities"])
    assert np.abs(answers - other.of_fitted(tf.constant(pixels))[0].numpy()).max() > 1e-3


def test_what_serves_is_asked_anew_where_its_report_is_damaged(outcome, caplog):
    config, done = outcome
    store = open_store(config.storage)

    (unit,) = units_of(done.dataset.shards_of("test"))
    index = ImageIndex(store, done.dataset, INDEXED)

    def answers():
        asked = answers_of_serving(config, store, done.dataset, "test", but="another").asked
        return asked.answers(store, unit, UnitImages(store, index, unit, whole=False))

    of_report = answers()
    report = f"{done.run.folder}/reports/{done.version.provenance.report:08d}/predictions.parquet"
    path = Path(config.storage.uri, report)
    path.write_bytes(b"damaged" + path.read_bytes())
    try:
        asked = answers()
    finally:
        path.write_bytes(path.read_bytes().removeprefix(b"damaged"))
    assert "Version 1, which serves, is asked anew" in caplog.text
    assert asked.predictions.keys == of_report.predictions.keys
    assert asked.comparable.all()
    np.testing.assert_allclose(asked.predictions.probabilities, of_report.predictions.probabilities, atol=1e-5)

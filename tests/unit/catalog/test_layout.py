"""Names in storage: what is stored keeps its name from release to release, and no room makes names by itself."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from transfer.catalog import layout

ROOM = Path(layout.__file__).parent
ONE, OTHER = "1" * 64, "2" * 64

NAMES = {
    layout.numbered("log", 7): "log/00000007",
    layout.numbered("log", 123456789): "log/123456789",
    layout.entry("log", 7): "log/00000007.json",
    layout.dataset_log("pets"): "datasets/pets",
    layout.shard(ONE): f"shards/{ONE}.parquet",
    layout.index_part(ONE): f"index/{ONE}.parquet",
    layout.ledger(ONE): f"rejects/{ONE}.parquet",
    layout.seen_log("pets"): "seen/pets",
    layout.seen_files(ONE): f"seen/{ONE}.parquet",
    layout.classes_log("pets"): "classes/pets",
    layout.removals_log(): "removals",
    layout.removal_end(2): "removals/00000002/end.json",
    layout.features_folder(ONE): f"features/{ONE}",
    layout.features_description(ONE): f"features/{ONE}/frozen_part.json",
    layout.features_content(ONE, OTHER, 640, ONE): f"features/{ONE}/{OTHER}-640-{ONE}.arrow",
    layout.earlier_features_content(ONE, OTHER): f"features/{ONE}/{OTHER}.arrow",
    layout.features_entry(ONE, OTHER): f"features/{ONE}/{OTHER}.json",
    layout.statistics_log(ONE): f"statistics/{ONE}",
    layout.run_folder("pets-1"): "runs/pets-1",
    layout.run_start("pets-1"): "runs/pets-1/run.json",
    layout.checkpoints_log("runs/pets-1"): "runs/pets-1/checkpoints",
    layout.arrays_folder("runs/pets-1"): "runs/pets-1/arrays",
    layout.arrays("runs/pets-1", ONE): f"runs/pets-1/arrays/{ONE}.npz",
    layout.base_log("runs/pets-1"): "runs/pets-1/base",
    layout.inputs_log("runs/pets-1"): "runs/pets-1/inputs",
    layout.uses_log("runs/pets-1"): "runs/pets-1/uses",
    layout.events("runs/pets-1", "train", 3): "runs/pets-1/tensorboard/train/events.out.tfevents.00000003",
    layout.reports_log("runs/pets-1"): "runs/pets-1/reports",
    layout.report_file("runs/pets-1", 2, layout.REPORT): "runs/pets-1/reports/00000002/report.json",
    layout.report_file("runs/pets-1", 2, layout.REPORT_PAGE): "runs/pets-1/reports/00000002/report.html",
    layout.report_file("runs/pets-1", 2, layout.PREDICTIONS): "runs/pets-1/reports/00000002/predictions.parquet",
    layout.part_of_predictions(7, 100_000): "predictions/part-00007.parquet",
    layout.range_test_folder("pets-1-a"): "lr_find/pets-1-a",
    layout.range_test_page("lr_find/pets-1-a", ONE): f"lr_find/pets-1-a/{ONE}.html",
    layout.curve("lr_find/pets-1-a"): "lr_find/pets-1-a/curve.json",
    layout.sweep_folder("pets-2"): "sweeps/pets-2",
    layout.sweep_start("sweeps/pets-2"): "sweeps/pets-2/sweep.json",
    layout.started_log("sweeps/pets-2"): "sweeps/pets-2/started",
    layout.trial_log("sweeps/pets-2", 4): "sweeps/pets-2/trials/00000004",
    layout.pack_folder("sweeps/pets-2", "key-fold1of5"): "sweeps/pets-2/packs/key-fold1of5",
    layout.results_log("sweeps/pets-2"): "sweeps/pets-2/results",
    layout.sweep_page("sweeps/pets-2", ONE): f"sweeps/pets-2/results/{ONE}.html",
    layout.nights_log("pets"): "nights/pets",
    layout.night_folder("pets", 5): "nights/pets/00000005",
    layout.claims_log("nights/pets/00000005"): "nights/pets/00000005/claims",
    layout.night_plan("nights/pets/00000005"): "nights/pets/00000005/plan.json",
    layout.night_summary("nights/pets/00000005", ONE): f"nights/pets/00000005/summary/{ONE}.json",
    layout.night_page("nights/pets/00000005", ONE): f"nights/pets/00000005/page/{ONE}.html",
    layout.night_end("nights/pets/00000005"): "nights/pets/00000005/end.json",
    layout.judged("pets", ONE): f"nights/pets/judged/{ONE}.json",
    layout.published_log("pets", "pets-1"): "models/pets/published/pets-1",
    layout.versions_log("pets"): "models/pets/versions",
    layout.version_folder("pets", 6): "models/pets/versions/00000006",
    layout.version_claim("pets", 6): "models/pets/versions/00000006/assets.extra/claim.json",
    layout.promotions_log("pets"): "models/pets/promotions",
    layout.serving_folder("pets"): "models/pets/serving",
    layout.served_folder("pets", 6): "models/pets/serving/00000006",
    layout.refusals_folder("pets"): "models/pets/refusals",
    layout.refusals_log("pets", 6): "models/pets/refusals/00000006",
    layout.retention_log("pets"): "models/pets/retention",
    layout.predictions_plan(): "_plan.json",
    layout.predictions_part(7, 100_000): "part-00007.parquet",
    layout.predictions_part(7, 100_001): "part-000007.parquet",
    layout.predictions_end(): "_SUCCESS",
    layout.probe("one"): ".probe/one",
    layout.RAY: "ray",
}


def functions(source):
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def test_names_of_what_is_stored_do_not_change():
    assert list(NAMES) == list(NAMES.values())


def test_each_function_that_makes_a_name_is_held_to_one():
    named = set(re.findall(r"layout\.(\w+)\(", Path(__file__).read_text(encoding="utf-8").partition("\n}\n")[0]))
    not_names = {"check_name", "below", "sha256_in", "pattern", "entry_pattern", "is_removable", "goes_when_empty"}
    parse = {name for name in functions(inspect.getsource(layout)) if name.endswith("_in")}
    assert functions(inspect.getsource(layout)) == named | not_names | parse


FOLDERS = (
    *(layout.DATASETS, layout.SHARDS, layout.REJECTS, layout.SEEN, layout.CLASSES, layout.FEATURES, layout.RUNS),
    *(layout.REMOVALS, layout.RANGE_TESTS, layout.SWEEPS, layout.NIGHTS, layout.MODELS, layout.PROBES),
)
# A folder with something below it, or something below the folder of a run, a sweep, a night or a model.
IN_STORAGE = re.compile(
    rf"(^|[ /\"'`])({'|'.join(map(re.escape, FOLDERS))})/"
    r"|/(run|sweep|curve|plan|end|claim|frozen_part)\.json"
    r"|\}/(checkpoints|arrays|base|inputs|uses|reports|tensorboard|started|trials|packs|results|claims|summary|page|judged"
    r"|published|versions|promotions|serving|refusals|retention)\b"
)


def names_made_in(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | parts
        ):
            text = node.value if isinstance(node, ast.Constant) else ast.unparse(node)[2:-1]
            if IN_STORAGE.search(text):
                yield f"{path.relative_to(ROOM.parent)}:{node.lineno}: {text}"


def test_no_other_module_makes_a_name():
    modules = [path for path in ROOM.parent.rglob("*.py") if path != ROOM / "layout.py"]
    assert [name for path in modules for name in names_made_in(path)] == []


def test_a_name_that_another_module_makes_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOM", tmp_path / "catalog")
    module = tmp_path / "module.py"
    module.write_text('log = f"runs/{run_id}"\nothers = f"{folder}/checkpoints"\npath = "a/b"\n')
    assert [name.partition(": ")[0] for name in names_made_in(module)] == ["module.py:1", "module.py:2"]


@pytest.mark.parametrize(
    ("name", "sha256"), [(f"shards/{ONE}.parquet", ONE), (f"rejects/{ONE}.parquet", ONE), (f"runs/a/{ONE}.npz", ONE)]
)
def test_the_digest_in_a_name_is_found(name, sha256):
    assert layout.sha256_in(name) == sha256


def test_what_cached_features_a_name_is_of_is_found():
    assert layout.features_entry_in(layout.features_entry(ONE, OTHER)) == OTHER
    assert layout.features_content_in(layout.features_content(ONE, OTHER, 640, ONE)) == (OTHER, 640, ONE)
    assert layout.features_content_in(layout.earlier_features_content(ONE, OTHER)) == (None, None, OTHER)
    others = [layout.features_description(ONE), f"features/short/{OTHER}.json", layout.features_folder(ONE)]
    assert [layout.features_entry_in(name) for name in others] == [None] * 3
    assert [layout.features_content_in(name) for name in others] == [None] * 3


def test_the_trial_that_a_name_is_of_is_found():
    assert layout.trial_in(layout.entry(layout.trial_log("sweeps/pets", 4), 1)) == ("pets", 4)
    assert layout.trial_in(layout.entry(layout.started_log("sweeps/pets"), 4)) is None


def test_the_log_that_a_name_is_an_entry_of_is_found():
    pattern = layout.entry_pattern(lambda run: layout.reports_log(layout.run_folder(run)))
    found = re.fullmatch(pattern, "runs/pets-1/reports/00000012.json")
    assert found
    assert found.groups() == ("pets-1", "00000012")
    assert not re.fullmatch(pattern, layout.report_file("runs/pets-1", 12, layout.REPORT))

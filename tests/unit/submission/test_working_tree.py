"""What of a working tree is shipped with a submitted job, and what is refused before anything is sent."""

import json
import re
import zipfile
from pathlib import Path

import pytest

from transfer.errors import ClusterError, ConfigError
from transfer.submission import working_tree
from transfer.submission.submit import cluster_address, submit, tree_to_ship
from transfer.submission.working_tree import pack, shipped_files

ROOT = Path(__file__).parents[3]


CODE = {
    "jobs/train.py",
    "jobs/sweep.py",
    "jobs/predict.py",
    "transfer/storage/store.py",
    "transfer/data/names.txt",
    "flowers.yaml",
    "notes/a.md",
}


@pytest.fixture
def tree(tmp_path):
    """A working tree with everything in it that has no business on a cluster."""
    root = tmp_path / "tree"
    unwanted = [
        *(".git/HEAD", "jobs/__pycache__/train.cpython-311.pyc", "old.pyc", ".mypy_cache/x.json", "data/1.jpg"),
        *("storage/shards/1.parquet", "x.egg-info/PKG-INFO", ".env", "key.pem", "node_modules/m/index.js"),
        *("my-environment/pyvenv.cfg", "my-environment/lib/python3.11/site-packages/big.py"),
        *("ignored/by-git.txt", "notes/ignored-there.txt", "ignored-by-ray.bin"),
    ]
    for name in [*CODE, *unwanted]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / ".gitignore").write_text("ignored/\n")
    (root / ".rayignore").write_text("*.bin\n")
    (root / "notes" / ".gitignore").write_text("/ignored-there.txt\n")
    return root


def names(root):
    return {path.relative_to(root).as_posix() for path in shipped_files(root)}


def test_code_is_shipped_and_data_environments_caches_and_keys_are_not(tree):
    ignore_files = {".gitignore", ".rayignore", "notes/.gitignore"}
    assert names(tree) == CODE | ignore_files


def test_links_to_folders_are_not_followed_and_links_to_files_are(tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "large.bin").write_text("large")
    (outside / "one.py").write_text("one")
    (tree / "linked").symlink_to(outside)
    (tree / "one.py").symlink_to(outside / "one.py")
    (tree / "nowhere").symlink_to(tmp_path / "nowhere")
    shipped = names(tree)
    assert "one.py" in shipped
    assert not {name for name in shipped if name.startswith(("linked", "nowhere"))}


def test_the_jobs_of_this_project_are_shipped_and_its_environment_is_not():
    shipped = names(ROOT)
    assert {"jobs/train.py", "transfer/cli/main.py", "transfer/demo/glyph_base.keras"} <= shipped
    assert not {name for name in shipped if name.startswith((".git/", ".venv/")) or name.endswith(".pyc")}


def test_a_configuration_outside_of_the_tree_goes_with_it(tree, tmp_path):
    outside = tmp_path / "night.yaml"
    outside.write_text("name: night")
    package = pack(tree, outside, tmp_path / "tree.zip")
    with zipfile.ZipFile(package.path) as archive:
        assert archive.read(package.config) == b"name: night"
        assert len(archive.namelist()) == package.files


def test_a_configuration_that_is_ignored_is_shipped_all_the_same(tree, tmp_path):
    assert pack(tree, tree / "ignored" / "by-git.txt", tmp_path / "tree.zip").config == "ignored/by-git.txt"
    with zipfile.ZipFile(tmp_path / "tree.zip") as archive:
        assert "ignored/by-git.txt" in archive.namelist()


def test_the_same_files_give_the_same_package_and_others_another(tree, tmp_path):
    config = tree / "flowers.yaml"
    first = pack(tree, config, tmp_path / "1.zip")
    (tree / "jobs" / "train.py").touch()
    assert pack(tree, config, tmp_path / "2.zip").sha256 == first.sha256
    (tree / "jobs" / "train.py").write_text("other")
    assert pack(tree, config, tmp_path / "3.zip").sha256 != first.sha256


def test_a_tree_larger_than_what_ray_takes_is_refused_with_its_largest_folders(tree, tmp_path):
    with (tree / "notes" / "film.mov").open("wb") as sparse:
        sparse.truncate(working_tree.package_limit_bytes())
    with pytest.raises(ConfigError, match=r"Largest: notes \(100\.0 MiB\), ") as refused:
        pack(tree, tree / "flowers.yaml", tmp_path / "tree.zip")
    assert ".rayignore" in refused.value.advice
    assert not (tmp_path / "tree.zip").exists()


def test_a_job_that_is_not_there_is_refused_with_those_that_are(tree):
    with pytest.raises(ConfigError, match=r"no job `trian` in .*; found: predict, sweep, train"):
        submit("trian", tree / "flowers.yaml", root=tree, write=print)


def test_outside_of_a_checkout_nothing_is_shipped_but_the_configuration(tree, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "private.jpg").touch()
    monkeypatch.chdir(folder)
    package = pack(tree_to_ship(None, empty=tmp_path / "empty"), tree / "flowers.yaml", tmp_path / "tree.zip")
    assert zipfile.ZipFile(package.path).namelist() == ["submitted/flowers.yaml"]
    with pytest.raises(ConfigError, match=r"no job `trian` in .*; found: evaluate, ingest, .*, train"):
        submit("trian", tree / "flowers.yaml", write=print)
    with pytest.raises(ConfigError, match=r"`base\.model` is a relative path to .*, outside of the working tree"):
        sent(tree, root=None, base="./base.keras")
    monkeypatch.chdir(tree)
    assert tree_to_ship(None, empty=tmp_path / "other").samefile(tree)


def sent(tree, *options, storage="s3://bucket/prefix", source="digits", base="MobileNetV2", **how):
    """Submit to where nobody answers: ClusterError is what becomes of a job that is not refused before."""
    path, job, arguments = tree / how.get("config", "flowers.yaml"), how.get("job", "train"), how.get("arguments", ())
    document = {"name": "n", "storage": storage, "dataset": {"source": source}, "base": {"model": base}}
    tried = how.get("tried", ["VGG16", "s3://bucket/one.keras"])
    path.write_text(json.dumps(document | {"sweep": {"space": {"base.model": tried}, "search": "grid"}}))
    where = {"address": "http://127.0.0.1:1", "root": how.get("root", tree / "jobs" / ".."), "write": print}
    submit(job, path, overrides=options, arguments=arguments, **where)


def test_a_typo_in_a_sweeps_space_is_found_before_anything_is_sent(tree):
    with pytest.raises(ConfigError, match="did you mean `learning_rate`"):
        sent(tree, 'sweep.space={"phases.0.learning_rte": [1]}', job="sweep")


PREDICT = {"job": "predict"}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"storage": "storage"}, "`storage` is storage, a relative path"),
        ({"storage": {"uri": "../elsewhere"}}, "`storage` is ../elsewhere, a relative path"),
        ({"storage": "TREE/storage"}, "`storage` is TREE/storage, inside of the working tree"),
        ({"storage": "file://TREE/storage"}, "`storage` is TREE/storage, inside of the working tree"),
        ({"source": "notes"}, "`dataset.source` is notes, a relative path"),
        ({"source": "../images.zip"}, "`dataset.source` is ../images.zip, a relative path"),
        ({"source": "TREE/notes"}, "`dataset.source` is TREE/notes, inside of the working tree"),
        ({"base": "base.keras"}, "`base.model` is a relative path, and there is nothing at TREE/base.keras"),
        (
            {"options": ["base.model=base.keras"]},
            "`base.model` is a relative path, and there is nothing at TREE/base.ke",
        ),
        ({"base": "ignored/by-git.txt/"}, "`base.model` is .*, and ignored/by-git.txt is not shipped: an ignore file"),
        ({"base": "./ignored"}, "`base.model` is TREE/ignored, and ignored/by-git.txt is not shipped"),
        (PREDICT | {"arguments": ["--images", "s3://b/i", "--output", "a.parquet"]}, "`--output` is a.parquet, a rel"),
        (PREDICT | {"arguments": ["--output=s3://b/o", "--images=TREE/notes"]}, "`--images` is TREE/notes, inside of"),
        ({"base": "linked/one.keras"}, "linked/one.keras is not shipped: .* a folder above it is a link"),
        ({"base": "TREE/notes/a.md"}, "`base.model` is TREE/notes/a.md, a path of this machine"),
        ({"base": "../outside/one.keras"}, "`base.model` is .*/outside/one.keras, outside of the working tree"),
        ({"base": "./a.md", "config": "../outside/flowers.yaml"}, "`base.model` is .*/outside/a.md, outside of the"),
        ({"tried": ["notes/a.md", "VGG16"], "job": "sweep"}, "`base.model` is TREE/notes/a.md, a path of this machine"),
        ({"base": "~/one.keras"}, "`base.model` is .*/one.keras, outside of the working tree"),
        ({"base": "/srv/one.keras", "storage": "/data"}, "`base.model` is /srv/one.keras, outside of the working tree"),
    ],
)
def test_what_a_job_would_not_find_is_refused_before_anything_is_sent(tree, tmp_path, monkeypatch, changes, found):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/one.keras").touch()
    (tree / "linked").symlink_to(tmp_path / "outside")
    (tree / "ignored/saved_model.pb").touch()
    # What is relative to the folder of the command, the job would not find either.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.keras").touch()
    changes = json.loads(json.dumps(changes).replace("TREE", str(tree)))
    with pytest.raises(ConfigError, match=found.replace("TREE", re.escape(str(tree)))):
        sent(tree, *changes.pop("options", ()), **changes)


def test_overrides_are_refused_too(tree):
    for options in ({"options": ["base.weights=x.h5"]}, {"arguments": ["--set", "base.weights=x.h5"]}):
        with pytest.raises(ConfigError, match=r"`base.weights` .* nothing at .*/tree/x.h5"):
            sent(tree, *options.get("options", ()), arguments=options.get("arguments", ()))
    # The last one counts, however it is written.
    with pytest.raises(ConfigError, match=r"`base.weights` .* nothing at .*/tree/last.h5"):
        sent(tree, arguments=["--set=base.weights=imagenet", "--set", "base.weights=last.h5"])
    with pytest.raises(ConfigError, match=r"`sweep.mlflow` is sqlite:///trials.db, a relative path"):
        sent(tree, "sweep.mlflow=sqlite:///trials.db", job="sweep")


@pytest.mark.parametrize(
    "changes",
    [
        {"base": "notes/a.md"},
        {"base": "./a.md", "config": "notes/flowers.yaml"},
        {"options": ["base.model=notes/a.md"], "config": "notes/flowers.yaml"},
        {"base": "./notes", "source": "/srv/images"},
        # A folder of results.
        {"base": "ResNet50"},
        {"job": "predict", "arguments": ["--images", "s3://b/i", "--output=/srv/answers.parquet"]},
        {"job": "sweep", "options": ["sweep.mlflow=databricks"]},
        {"job": "sweep", "options": ["sweep.mlflow=databricks://profile"]},
        {"base": "SHARED/bases/one.keras", "storage": "SHARED/storage", "source": "tfds:flowers"},
        {"base": "s3://bucket/one.keras"},
    ],
)
def test_what_a_job_finds_is_sent(tree, tmp_path, changes):
    (tree / "notes/ignored-there.txt").unlink()
    (tree / "notes/.DS_Store").touch()
    (tree / "notes/saved_model.pb").touch()
    (tree / "ResNet50").mkdir()
    (tree / "ResNet50/.gitignore").write_text("*")
    (tree / "ResNet50/results.json").touch()
    changes = json.loads(json.dumps(changes).replace("SHARED", str(tmp_path)))
    with pytest.raises(ClusterError, match="No Ray cluster answers"):
        sent(tree, *changes.pop("options", ()), **changes)


def test_without_an_address_no_cluster_is_guessed(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="neither --address nor RAY_ADDRESS"):
        cluster_address()
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert cluster_address() == "http://head:8265"
    assert cluster_address("http://other:8265") == "http://other:8265"

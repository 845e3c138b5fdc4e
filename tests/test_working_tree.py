"""What of a working tree is shipped with a submitted job, and what is refused before anything is sent."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from transfer import working_tree
from transfer.errors import ConfigError
from transfer.submit import cluster_address, submit
from transfer.working_tree import pack, shipped_files

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path):
    """A working tree with everything in it that has no business on a cluster."""
    root = tmp_path / "tree"
    wanted = ["jobs/train.py", "transfer/storage/store.py", "transfer/data/names.txt", "flowers.yaml", "notes/a.md"]
    unwanted = [
        *(".git/HEAD", "jobs/__pycache__/train.cpython-311.pyc", "old.pyc", ".mypy_cache/x.json", "data/1.jpg"),
        *("storage/shards/1.parquet", "x.egg-info/PKG-INFO", ".env", "key.pem", "node_modules/m/index.js"),
        *("my-environment/pyvenv.cfg", "my-environment/lib/python3.11/site-packages/big.py"),
        *("ignored/by-git.txt", "notes/ignored-there.txt", "ignored-by-ray.bin"),
    ]
    for name in [*wanted, *unwanted]:
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
    code = {"jobs/train.py", "transfer/storage/store.py", "transfer/data/names.txt", "flowers.yaml", "notes/a.md"}
    assert names(tree) == code | ignore_files


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
    assert {"jobs/train.py", "transfer/cli.py", "transfer/demo/glyph_base.keras"} <= shipped
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
        sparse.truncate(working_tree.size_limit_bytes())
    with pytest.raises(ConfigError, match=r"Largest: notes \(100\.0 MiB\), ") as refused:
        pack(tree, tree / "flowers.yaml", tmp_path / "tree.zip")
    assert ".rayignore" in refused.value.advice
    assert not (tmp_path / "tree.zip").exists()


def test_a_job_that_is_not_there_is_refused_with_those_that_are(tree):
    with pytest.raises(ConfigError, match=r"no job `trian` in .*; found: train"):
        submit("trian", tree / "flowers.yaml", root=tree, write=print)


@pytest.mark.parametrize(
    ("key", "changes"),
    [("storage", {"storage": "storage"}), ("dataset.source", {"source": "notes"})],
)
def test_folders_in_the_tree_are_refused_as_places_for_data(tree, tmp_path, monkeypatch, key, changes):
    monkeypatch.chdir(tree)
    storage, source = changes.get("storage", "s3://bucket/prefix"), changes.get("source", "digits")
    path = tree / "flowers.yaml"
    path.write_text(f"{{name: n, storage: '{storage}', dataset: {{source: {source}}}, base: {{model: MobileNetV2}}, ")
    with path.open("a") as file:
        file.write("phases: [{unfreeze: 0, epochs: 1, learning_rate: 0.001}]}")
    with pytest.raises(ConfigError, match=f"`{key}` is .*inside of the working tree"):
        submit("train", path, address="http://127.0.0.1:1", root=tree, write=print)


def test_without_an_address_no_cluster_is_guessed(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="neither --address nor RAY_ADDRESS"):
        cluster_address()
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert cluster_address() == "http://head:8265"
    assert cluster_address("http://other:8265") == "http://other:8265"


def test_submitting_never_loads_tensorflow():
    code = "import sys, transfer.submit, ray.job_submission; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

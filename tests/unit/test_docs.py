"""What the documentation says can be done: commands, configurations, snippets and links, all of them, none executed.

Blocks without a language are commands, `cron` lines of a crontab, `yaml` configurations, `python` code (which
tests/system/test_docs.py runs), `text` and `json` what something prints.
"""

import ast
import importlib
import re
import shlex
import tomllib
from itertools import groupby

import pytest
import typer
import yaml

from tests.documentation import PAGES, ROOT, blocks, headings, inline_code, links
from transfer.cli.main import app
from transfer.config import Config, DatasetConfig, load_config, load_document, parse_config
from transfer.config.explain import fields_at

BLOCKS = [block for page in PAGES for block in blocks(page)]
SEPARATORS = {"&&", "||", "|", ";"}
# What pages call besides this project's own commands. Their arguments are read as a shell does, and no further.
PROGRAMS = {
    "cd",
    "curl",
    "docker",
    "git",
    "kubectl",
    "nvidia-smi",
    "set",
    ".",
    "tensorboard",
    "tensorflow_model_server",
}
FOLDERS = ("cluster/", "docs/", "jobs/", "requirements/", "scripts/", "tests/", "transfer/")
NUMBERS = {"VERSION": "1", "K": "1"}
"""Words that stand for a number."""
MINIMAL = {
    "name": "flowers",
    "storage": "./storage",
    "dataset": {"source": "./flower_photos"},
    "base": {"model": "MobileNetV2", "image_size": 224},
    "phases": [{"unfreeze": 0}, {"unfreeze": 2}],
}
SPACE = {"phases.0.learning_rate": [1e-3, 1e-2]}
"""What a fragment of a sweep is completed with."""


def named(*languages):
    return [pytest.param(block, id=block.name) for block in BLOCKS if block.language in languages]


def commands_of(text):
    """The commands of a block as lists of words: comments, redirections, assignments and notation of usage left out."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"(?<= )\d(?=>)", "", line), posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        for is_separator, words in groupby(lexer, lambda word: word in SEPARATORS):
            if not is_separator:
                plain = [word for word in _plain(words) if word]
                while plain and re.match(r"[A-Z_]+=", plain[0]):
                    plain.pop(0)
                if plain:
                    yield plain


def _plain(words):
    for word in words:
        if word in {">", ">>", ">&", "<"}:
            next(words)
            continue
        # `[--remove]` in a line of usage: the option can be left out.
        is_usage = word.startswith("[") or (word.endswith("]") and "[" not in word)
        yield (word.strip("[]") if is_usage else word).strip("…")


def check(words, folder):
    """Fail where a command cannot be called so."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    for word in rest:
        if word.startswith(FOLDERS):
            assert (ROOT / word.partition("::")[0]).exists(), word
    match [program, *rest]:
        case ["transfer", *arguments]:
            check_transfer(arguments, folder)
        case ["python", "-c", code]:
            ast.parse(code)
        case ["python", "-m", module, *arguments]:
            check_module(module, arguments, folder)
        case ["ray", "job", "submit", *arguments]:
            check(arguments[arguments.index("--") + 1 :], folder)
        case ["pip", "install", *packages]:
            check_extras(packages)
        case ["make", *targets]:
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {target for target in targets if "=" not in target} <= set(known)
        case ["bash" | "pytest", *paths]:
            assert [path for path in paths if path.startswith(FOLDERS)], words
        case _:
            assert program in PROGRAMS, f"{program} is not known here"


def check_transfer(arguments, folder):
    """Parse a command line as the program does, and read its overrides into a configuration."""
    arguments = [NUMBERS.get(word, word) for word in arguments]
    command = typer.main.get_command(app)
    while getattr(command, "commands", None) and arguments and not arguments[0].startswith("-"):
        assert arguments[0] in command.commands, f"there is no command {arguments[0]}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    try:
        context = command.make_context("transfer", list(arguments))
    except typer.Exit:
        return  # `--version`, `--help`
    if overrides := context.params.get("overrides"):
        document = MINIMAL | {"sweep": {"space": dict(SPACE)}}
        (folder / "minimal.yaml").write_text(yaml.safe_dump(document))
        load_config(folder / "minimal.yaml", overrides)
    if command.name == "submit":
        own = arguments[: arguments.index("--")] if "--" in arguments else arguments
        check_transfer([context.params["job"], *own[1:2], *arguments[len(own) + 1 :]], folder)


def check_module(module, arguments, folder):
    file = ROOT / module.replace(".", "/")
    assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), module
    if module == "transfer":
        check_transfer(arguments, folder)
    if module.startswith("jobs."):
        check_transfer([module.removeprefix("jobs.").replace("_", "-"), *arguments], folder)


def check_extras(packages):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package in packages:
        name, _, extra = package.strip("]").partition("[")
        if name in {".", project["name"]} and extra:
            assert extra in project["optional-dependencies"], extra


def test_every_block_says_what_it_is():
    assert {block.language for block in BLOCKS} <= {"", "cron", "json", "python", "text", "yaml"}


@pytest.mark.parametrize("block", named(""))
def test_commands_can_be_called_so(block, tmp_path):
    for words in commands_of(block.text):
        check(words, tmp_path)


@pytest.mark.parametrize("block", named("cron"))
def test_lines_of_a_crontab_have_five_fields_and_a_command(block, tmp_path):
    for line in block.text.splitlines():
        if re.match(r"#|[A-Z]+=|$", line):
            continue
        *fields, command = line.split(maxsplit=5)
        assert all(re.fullmatch(r"[\d*/,-]+", field) for field in fields), line
        assert len(fields) == 5
        assert not re.search(r"(?<!\\)%", command), "to cron, % ends the line"
        for words in commands_of(command):
            check(words, tmp_path)


@pytest.mark.parametrize("block", named("yaml"))
def test_configurations_are_ones(block, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(block.text)
    document = load_document(file)
    if "sweep" in document:
        document["sweep"] = {"space": SPACE} | document["sweep"]
    parse_config(MINIMAL | document)


@pytest.mark.parametrize("block", named("python"))
def test_python_is_python_and_imports_what_there_is(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "transfer":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def each_page(pages=PAGES):
    return [pytest.param(page, id=page.name) for page in pages]


@pytest.mark.parametrize("page", each_page())
def test_links_lead_to_files_and_headings(page):
    for link in links(page):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_the_first_page_leads_to_every_page():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert set(PAGES) - linked == {ROOT / "README.md"}


@pytest.mark.parametrize("page", each_page())
def test_commands_in_the_text_exist(page):
    for code in inline_code(page):
        if not code.startswith("transfer "):
            continue
        # `transfer cache ls | gc`
        first, *others = (part.split() for part in code.split(" | "))
        for words in [first, *(first[:-1] + other for other in others)]:
            command = typer.main.get_command(app)
            for word in words[1:]:
                if getattr(command, "commands", None) and word.islower() and not word.startswith("-"):
                    assert word in command.commands, code
                    command = command.commands[word]
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options | {"--", "--help"}, code


@pytest.mark.parametrize("page", each_page())
def test_keys_in_the_text_exist(page):
    for key in (code for code in inline_code(page) if re.fullmatch(r"[a-z_]+(\.([a-z_]+|\d+|\*))+", code)):
        # An index, or `*` for all of a list, has no name.
        parts = [part for part in key.split(".") if part.isalpha() or "_" in part]
        if parts[0] in Config.model_fields and parts[-1] != "keras":
            for place in range(len(parts)):
                assert parts[place] in fields_at(Config, parts[:place]), key


def test_each_layout_of_a_source_has_a_configuration_and_each_key_that_reads_one_a_layout():
    found = [yaml.safe_load(code) for code in inline_code(ROOT / "docs/ingest.md") if "source: " in code]
    for dataset in found:
        parse_config({**MINIMAL, "dataset": dataset})
    keys = {key for dataset in found for key in dataset}
    of_images = {"validation", "test", "background", "depth", "transcode", "name", "rename_classes"}
    limits = {key for key in DatasetConfig.model_fields if key.startswith(("max_", "min_")) or key.endswith("_bytes")}
    assert keys == {*DatasetConfig.model_fields} - of_images - limits

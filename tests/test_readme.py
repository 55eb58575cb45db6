"""What the README and the docs say is what the program does."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onnxdecomp.cli import app
from onnxdecomp.methods import registered
from onnxdecomp.ranks import POLICIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted({method.name for method in registered()}))
def test_every_method_is_in_the_table_and_in_the_help(name):
    assert f"| `{name}` |" in README
    assert name in CliRunner().invoke(app, ["convert", "--help"], env={"COLUMNS": "200"}).output


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_rank_policy_is_in_the_table(name):
    assert re.search(rf"\| `{name}[`:\[]", README)


@pytest.mark.parametrize("option", sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))))
def test_every_option_the_readme_names_exists(option):
    commands = ("convert", "finetune", "inspect", "verify", "bench")
    pages = [CliRunner().invoke(app, [command, "--help"]).output for command in commands]
    assert any(option in page for page in pages)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"bench/results/[\w.]+", README))))
def test_every_result_the_readme_cites_is_there(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_make_targets(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

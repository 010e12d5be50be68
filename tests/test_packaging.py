"""What the package needs, holds and says of itself is the same in pyproject.toml, conda's recipe, Docker and Galaxy."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
import yaml

import plft
from plft.apps.cli import app
from plft.heads import HEADS
from plft.tasks import TASKS
from plft.tuning import find_method
from scripts import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GALAXY = ROOT / "packaging" / "galaxy"
TOOLS = sorted(GALAXY.glob("plft_*.xml"))


def name_and_range(requirement: str) -> tuple[str, str]:
    """ "numpy>=2  # why" -> ("numpy", ">=2")."""
    found = re.match(r"([\w.-]+)\s*([^;#]*)", requirement)
    assert found is not None
    return found[1].lower().replace("_", "-"), found[2].strip()


BROUGHT_BY = {"markupsafe": "jinja2", "sqlalchemy": "optuna"}  # what these cannot do without, and do show to others


def test_every_package_that_is_imported_is_declared():
    declared = {name_and_range(each)[0] for each in PROJECT["dependencies"]}
    of_users = PROJECT["optional-dependencies"].keys() - {"dev", "docs", "tutorials"}
    extras = [PROJECT["optional-dependencies"][extra] for extra in of_users]
    optional = {name_and_range(each)[0] for needed in extras for each in needed}
    distributions = importlib.metadata.packages_distributions()
    for file in (ROOT / "src").rglob("*.py"):
        for module in imported(file) - sys.stdlib_module_names - {"plft"}:
            names = {name_and_range(each)[0] for each in [BROUGHT_BY.get(module), *distributions[module]] if each}
            assert names & (declared | optional), f"{file.name} imports {module}, which pyproject.toml does not name"


def imported(file: Path) -> set[str]:
    """Top-level names of all that a file imports, wherever the import stands."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return {name.split(".")[0] for name in plain | {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}}


# --- conda

CONDA_NAMES = {"torch": "pytorch", "huggingface-hub": "huggingface_hub"}  # where they differ


def test_the_recipe_needs_what_the_package_needs():
    recipe = yaml.safe_load((ROOT / "packaging/conda/recipe.yaml").read_text())
    needed = [("python", PROJECT["requires-python"]), *map(name_and_range, PROJECT["dependencies"])]
    expected = {(CONDA_NAMES.get(name, name), span) for name, span in needed}
    assert {tuple(each.split(" ", 1)) for each in recipe["requirements"]["run"]} == expected


def test_the_recipe_is_of_this_version_and_this_command():
    recipe = yaml.safe_load((ROOT / "packaging/conda/recipe.yaml").read_text())
    assert recipe["context"]["version"] == PROJECT["version"] == plft.__version__
    assert recipe["build"]["python"]["entry_points"] == [f"plft = {PROJECT['scripts']['plft']}"]
    assert recipe["about"]["license"] == PROJECT["license"]
    assert recipe["about"]["summary"] == PROJECT["description"]


# --- Docker


def test_the_image_runs_plft_as_a_user_without_rights_and_names_no_package_index():
    text = (ROOT / "packaging/Dockerfile").read_text()
    steps = [line.split(maxsplit=1) for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert steps[-2:] == [["ENTRYPOINT", '["plft"]'], ["CMD", '["--help"]']]
    assert ["USER", "plft"] in steps
    assert "http" not in text
    copied = [words.split()[:-1] for step, words in steps if step == "COPY"]
    assert copied == [["constraints.txt", "dist/plft-*.whl"]]


# --- Galaxy


@pytest.fixture(params=TOOLS, ids=lambda path: path.stem)
def tool(request: pytest.FixtureRequest) -> ElementTree.Element:
    """A tool's description."""
    return ElementTree.parse(request.param).getroot()


def commands_of(tool: ElementTree.Element) -> list[tuple[str, str]]:
    """The plft commands that a tool runs, each with its arguments."""
    found = re.findall(r"^plft ([\w-]+)(.*?)(?=&&|\Z)", tool.findtext("command") or "", re.MULTILINE | re.DOTALL)
    assert found
    return found


def test_a_galaxy_tool_calls_commands_and_options_that_there_are(tool):
    commands = typer.main.get_command(app).commands
    for name, arguments in commands_of(tool):
        options = {option for each in commands[name].params for option in each.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", arguments)) - options == set()


def test_a_galaxy_tool_gives_every_input_to_its_command(tool):
    command = tool.findtext("command") or ""
    shared = (GALAXY / "macros.xml").read_text()
    for each in tool.find("inputs").iter("param"):
        name = each.get("name") or each.get("argument").removeprefix("--").replace("-", "_")
        assert re.search(rf"[$.]{name}\b", command + shared), name


def test_what_galaxy_offers_is_known():
    inputs = ElementTree.parse(GALAXY / "plft_train.xml").getroot().find("inputs")
    offered = {
        each.get("name"): [option.get("value") for option in each.iter("option")] for each in inputs.iter("param")
    }
    assert set(offered["head"]) == set(HEADS)
    assert set(offered["task"]) == {"auto", *TASKS}
    for method in offered["tune"]:
        find_method(method)


def test_a_galaxy_tool_has_tests_whose_files_are_there(tool):
    files = [each.get("value") for each in tool.iter("param") if each.get("ftype")]
    assert files
    assert [name for name in files if not (GALAXY / "test-data" / name).exists()] == []


def test_the_galaxy_tools_are_of_this_version():
    tokens = {each.get("name"): each.text for each in ElementTree.parse(GALAXY / "macros.xml").getroot().iter("token")}
    assert tokens["@TOOL_VERSION@"] == plft.__version__


# --- the wheel


@pytest.mark.slow
def test_the_wheel_holds_the_models_and_the_templates_and_is_small(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    package = source / "src"
    expected = {each.relative_to(package).as_posix() for each in (package / "plft").rglob("*") if each.is_file()}
    assert {each for each in expected if "__pycache__" not in each} <= held
    assert {f"plft/builtin/{name}/model.safetensors" for name in ("protein", "dna")} <= held
    assert wheel.stat().st_size < 25e6

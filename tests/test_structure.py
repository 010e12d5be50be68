"""The shape of the code: who imports whom, what stays fast, and what the docs promise of it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import plft
from plft.apps.cli import app
from plft.config import ModelConfig, RunConfig
from plft.heads import HEADS, POOLINGS
from plft.tasks import TASKS

SOURCE = Path(plft.__file__).parent
LISTED = re.findall(r"^    (\w+)  +\S", plft.__doc__, flags=re.MULTILINE)
FILES = sorted(SOURCE.rglob("*.py"))
COMMANDS = typer.main.get_command(app).commands


def module_of(file: Path) -> str:
    """The name a file has in the list: its module, or for a package's parts the package."""
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> list[tuple[str, int]]:
    """Modules of plft that a file imports, with the line, wherever in the file the import stands."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "plft":
            names = [node.module] if "." in node.module else [f"plft.{each.name}" for each in node.names]
            found += [(name.split(".")[1], node.lineno) for name in names]
        elif isinstance(node, ast.Import):
            found += [(each.name.split(".")[1], node.lineno) for each in node.names if each.name.startswith("plft.")]
    return found


def test_the_list_of_modules_is_complete() -> None:
    there = {module_of(file) for file in FILES} - {"__init__", "__main__"}
    assert set(LISTED) == there
    assert len(LISTED) == len(set(LISTED))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_module_imports_only_from_those_above_it(file: Path) -> None:
    module = module_of(file)
    if module in ("__init__", "__main__"):
        return
    above = LISTED[: LISTED.index(module)]
    allowed = {*above, module} if file.parent != SOURCE else set(above)
    wrong = [(name, line) for name, line in imports_of(file) if name in LISTED and name not in allowed]
    assert not wrong, f"{file.name} imports from below itself: {wrong}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_module_is_longer_than_550_lines(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 550


def test_nothing_is_called_utils() -> None:
    assert not {file.stem for file in FILES} & {"utils", "common", "base", "helpers", "misc"}


def test_no_exception_is_swallowed() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{file.name}:{node.lineno} catches everything"
                assert not all(isinstance(each, ast.Pass) for each in node.body), f"{file.name}:{node.lineno} passes"


# --- fast commands

LOOKS = """
import sys
from plft.apps.cli import main
sys.argv = ["plft", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("HEAVY:", sorted({"torch", "transformers", "peft", "accelerate"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["train", "--help"], ["check", "data.csv"], ["split", "data.csv", "-o", "out.csv"]],
    ids=" ".join,
)
def test_help_check_and_split_never_import_torch(arguments: list[str], tmp_path: Path) -> None:
    rows = [f"{'MKTAYIAKQR' * 2}{'ACDEFGHIKL'[at]},{at % 2}" for at in range(10)]
    (tmp_path / "data.csv").write_text("sequence,label\n" + "\n".join(rows) + "\n")
    command = [sys.executable, "-c", LOOKS, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "HEAVY: []" in done.stdout


# --- one word for one thing


def choices(annotation: object) -> set[str]:
    """The strings of a Literal, wherever it stands in an annotation."""
    arguments = getattr(annotation, "__args__", ())
    nested = [choices(each) for each in arguments if not isinstance(each, str)]
    return {each for each in arguments if isinstance(each, str)}.union(*nested)


def test_names_in_the_configuration_are_those_of_the_tables() -> None:
    assert choices(ModelConfig.model_fields["head"].annotation) == set(HEADS)
    assert choices(ModelConfig.model_fields["pooling"].annotation) == set(POOLINGS)
    assert choices(RunConfig.model_fields["task"].annotation) == {"auto", *TASKS}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_help_of_every_command_ends_in_an_example(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert f"plft {name}" in (command.epilog or "")


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_option_says_what_it_is(name: str) -> None:
    for parameter in COMMANDS[name].params:
        if parameter.name != "help":
            assert getattr(parameter, "help", None), f"plft {name}: {parameter.name}"


def test_the_package_exports_what_it_says() -> None:
    assert set(plft.__all__) <= set(dir(plft))
    for name in plft.__all__:
        assert getattr(plft, name) is not None


def test_importing_plft_keeps_the_optional_kernels_of_a_library_out_of_sight() -> None:
    """Otherwise every process that imports peft warns of them, on CPUs that compute in bf16."""
    code = "import logging, plft; print(logging.getLogger('bitsandbytes').level == logging.ERROR)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"

"""The site: what it shows runs, what is generated is current, no page is lost, and it builds without a warning."""

from __future__ import annotations

import gzip
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer

import plft as package
from commandline import plft
from pages import DOCS, blocks_of, name_of, run_page, shortened, text_of, write_the_files_of_the_pages
from plft.apps.cli import app
from scripts import ROOT, load_script

COMMANDS = typer.main.get_command(app).commands
HOW_TO = [name_of(page) for page in sorted(DOCS.glob("how-to/*.md"))]


@pytest.mark.parametrize("name", HOW_TO)
def test_everything_that_a_how_to_page_shows_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(name)


# --- the pages of the commands


def test_the_pages_of_the_commands_are_current():
    fresh = load_script("docs/make_commands.py").pages()
    there = {page.name: page.read_text(encoding="utf-8") for page in DOCS.glob("commands/*.md")}
    assert there == fresh, "run: python docs/make_commands.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_a_command_names_the_options_of_its_help(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # so that no long name is cut
    offered = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", plft(name, "--help").out)) - {"--help"}
    rows = re.findall(r"^\| (`--.*?) \|", text_of(f"docs/commands/{name}.md"), re.MULTILINE)
    assert set(re.findall(r"--[a-z][\w-]*", "".join(rows))) == options_of(name)
    assert options_of(name) <= offered


def options_of(name: str) -> set[str]:
    """The long options of a command."""
    options = [each for each in COMMANDS[name].params if each.param_type_name == "option" and each.name != "help"]
    return {name for each in options for name in [*each.opts, *each.secondary_opts] if name.startswith("--")}


LEFT_OUT = {"demo"}  # takes minutes; tests/test_demonstration.py runs it
ONLY_READ = {"compare", "tune", "pretrain", "adapt"}  # README shows and tests/test_docs.py runs them


def test_the_examples_of_all_commands_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_the_files_of_the_pages()
    for name in ("proteins.fasta", "family.fasta"):
        shutil.copy("new.fasta", name)
    for name in ("proteins.fasta.gz", "proteome.fasta.gz"):
        Path(name).write_bytes(gzip.compress(Path("new.fasta").read_bytes()))
    for name in [each for each in COMMANDS if each not in LEFT_OUT]:
        blocks = blocks_of(text_of(f"docs/commands/{name}.md"))
        (example,) = [shlex.split(block.text) for block in blocks if block.language == "bash"]
        assert example[:2] == ["plft", name]
        if name in ONLY_READ:
            COMMANDS[name].make_context(name, example[2:])
            continue
        again = ["--overwrite"] if "--overwrite" in options_of(name) else []  # two examples make the folder `model`
        done = plft(*shortened(example)[1:], *again)
        assert done.code == 0, f"{example}\n{done.err}"


# --- finding


def trees_of(page: Path) -> list[Path]:
    """The pages that the tables of contents of a page name."""
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    return [page.parent / f"{name}.md" for name in names]


def test_every_page_can_be_reached_from_the_first_one():
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        assert page not in reached, f"{page} stands in two tables of contents"
        reached.add(page)
        waiting += trees_of(page)
    assert reached == set(DOCS.rglob("*.md"))


def test_every_public_name_is_on_the_page_of_classes_and_functions():
    page = text_of("docs/api.md")
    aliases = [name for name in package.__all__ if f"`{name}` is another name" in page]
    documented = re.findall(r"^\.\. auto\w+:: plft\.(\w+)(?:\(\))?$", page, re.MULTILINE)
    assert sorted([*documented, *aliases, "__version__"]) == package.__all__


# --- docstrings


def fields(text: str, *known: str) -> list[str]:
    return load_script("docs/conf.py").fields(text, set(known))


def test_runs_of_names_with_a_colon_become_fields():
    assert fields("rows: as text.  columns, extra: by default those: of the run.", "rows", "columns", "extra") == [
        "",
        ":param rows: as text.",
        ":param columns: by default those: of the run.",
        ":param extra: by default those: of the run.",
    ]


def test_what_a_function_returns_and_raises_becomes_a_field():
    text = "hidden: (batch, width).  Returns (batch,). Raises PlftError where a label is missing."
    assert fields(text, "hidden") == [
        "",
        ":param hidden: (batch, width).",
        ":returns: (batch,).",
        ":raises PlftError: where a label is missing.",
    ]


def test_a_sentence_with_a_colon_stays_a_sentence():
    text = "Two kinds: protein and DNA. The first: protein."
    assert fields(text, "kind") == [text]


def test_the_plural_of_a_name_is_marked_where_the_name_ends():
    lines = ["Takes `Record`s, ``None`` and `more`."]
    load_script("docs/conf.py").set_fields(None, "function", "f", print, None, lines)
    assert lines == ["Takes `Record`\\ s, ``None`` and `more`.", ""]


# --- building


class Targets(HTMLParser):
    """Anchors of a page, where its links lead, and what the browser loads for it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given["id"]} if "id" in given else set()
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it; a warning is a failure."""
    if not all(importlib.util.find_spec(name) for name in ("sphinx", "myst_parser", "furo")):
        pytest.skip("sphinx, myst-parser and furo are not here: pip install 'plft[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_no_link_within_it_is_broken(site):
    pages = {page: Targets(page) for page in site.rglob("*.html")}
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # and those of search and index
    for page, found in pages.items():
        for link in found.links:
            file, _, anchor = link.partition("#")
            if not re.match(r"\w+:", link):
                target = (page.parent / file).resolve() if file else page
                assert target.exists(), f"{page.name}: {link}"
                assert not anchor or anchor in pages[target].anchors, f"{page.name}: {link}"


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere_and_can_be_searched(site):
    for page in site.rglob("*.html"):
        assert [each for each in Targets(page).loaded if re.match(r"\w+:|//", each)] == [], page.name
    assert '"mmseqs2"' in (site / "searchindex.js").read_text(encoding="utf-8")

"""README and docs keep their word: what they show runs, where they point exists, and no name is left out."""

from __future__ import annotations

import re

import pytest

from pages import DOCS, Block, blocks_of, name_of, run_page, text_of
from plft.apps.cli import app
from plft.checkpoints import SHORT_NAMES
from plft.families import FAMILIES
from plft.formats import READERS
from plft.heads import HEADS, POOLINGS
from plft.metrics import METRICS
from plft.scratch import ARCHITECTURES
from plft.search_space import SPACE
from plft.tuning import METHODS
from scripts import ROOT, load_script

NAMES = sorted(name_of(page) for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

# --- running


def test_blocks_are_found_with_the_comment_before_them():
    page = "A\n\n<!-- not run: why -->\n```bash\nplft x\n```\n\n```python\nprint()\n```\n"
    assert list(blocks_of(page)) == [
        Block("bash", "plft x\n", 3, not_run="why"),
        Block("python", "print()\n", 8),
    ]


@pytest.mark.parametrize("name", [name_of(page) for page in [*ROOT.glob("*.md"), *DOCS.glob("*.md")]])
def test_everything_that_a_page_shows_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(name)


# --- pointing


def headings(page: str) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_links_between_files_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), f"{name} points at {target}"
        assert not anchor or anchor in headings(path.read_text(encoding="utf-8")), f"{name} points at {target}"


# --- completeness


def test_the_configuration_reference_is_current():
    fresh = load_script("docs/make_configuration.py").reference()
    assert text_of("docs/configuration.md") == fresh, "run: python docs/make_configuration.py"


def test_readme_has_an_example_of_every_command():
    commands = [each.name or each.callback.__name__ for each in app.registered_commands]
    shown = "\n".join(block.text for block in blocks_of(text_of("README.md")))
    assert [each for each in commands if not re.search(rf"^plft {each}\b", shown, re.MULTILINE)] == []


KNOWN = {
    "docs/models.md": [
        *FAMILIES,
        *(each.title for each in FAMILIES.values()),
        *SHORT_NAMES,
        *SHORT_NAMES.values(),
        *(each for each in ARCHITECTURES if not each.startswith("tiny-")),
    ],
    "docs/tuning.md": [*METHODS, *HEADS, *POOLINGS, *SPACE],
    "docs/run-folder.md": list(METRICS),
    "docs/data-formats.md": list(READERS),
}


@pytest.mark.parametrize("name", KNOWN)
def test_tables_name_every_row_there_is(name):
    page = text_of(name)
    assert [each for each in KNOWN[name] if f"`{each}`" not in page and f"| {each} |" not in page] == []


def test_the_tuning_page_states_the_default_learning_rates():
    for line in text_of("docs/tuning.md").splitlines():
        for method in METHODS.values():
            if line.startswith(f"| `{method.name}` |"):
                rates = [float(each) for each in re.findall(r"\d+e-\d+", line)]
                assert rates == [method.learning_rate, method.scratch_learning_rate], line


def test_contributing_is_short_and_ends_in_its_table():
    lines = text_of("CONTRIBUTING.md").splitlines()
    assert len(lines) < 40
    assert lines[-1].startswith("| ")

"""Writes commands/, a page for each command, from the command line itself: python docs/make_commands.py"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from plft.apps.cli import app

FOLDER = Path(__file__).with_name("commands")
NOTE = "<!-- Written by docs/make_commands.py; edit the help texts in src/plft/apps instead. -->\n\n"

INDEX = """\
# Commands

`plft COMMAND --help` prints what these pages say. The exit code is 0 when all is done, 1 for what you can put right
(one line says what, where and how to go on), 2 for a bug in plft, and 130 after an interruption.

| command | what it does |
|---|---|
{rows}

```{{toctree}}
:hidden:

{names}
```
"""

PAGE = """\
# plft {name}

{help}

```text
{usage}
```

For example:

<!-- not run: tests/test_site.py runs the examples of all commands, one after the other -->
```bash
{example}
```
"""

SETTINGS = "\n`--set` reaches every key of the [configuration](../configuration.md{}).\n"
KINDS = {str: "text", int: "whole number", float: "number", Path: "path", bool: ""}


def pages() -> dict[str, str]:
    """The text of every page by its file name."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    rows = [f"| [`plft {name}`]({name}.md) | {plain(each.help)} |" for name, each in commands.items()]
    written = {f"{name}.md": NOTE + page(name, each) for name, each in commands.items()}
    return {**written, "index.md": NOTE + INDEX.format(rows="\n".join(rows), names="\n".join(commands))}


def page(name: str, command: Any) -> str:
    """The page of one command."""
    kinds = get_type_hints(command.callback)
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and each.name != "help"]
    text = PAGE.format(
        name=name,
        help=plain(command.help),
        usage=" ".join(["plft", name, *usage(arguments, options)]),
        example=example(command),
    )
    text += table("Arguments", ("argument", "meaning"), [argument_row(each) for each in arguments])
    text += table("Options", ("option", "value", "default", "meaning"), [option_row(each, kinds) for each in options])
    own = "#pretrainingyaml" if name in ("pretrain", "adapt") else ""
    return text + (SETTINGS.format(own) if any(each.name == "set" for each in options) else "")


def usage(arguments: list[Any], options: list[Any]) -> list[str]:
    """The words after the name: what is needed by name, the rest in brackets."""
    needed = [f"{longest(each)} {each.name.upper()}" for each in options if each.required]
    others = ["[options]"] if any(not each.required for each in options) else []
    return [shown(each) if each.required else f"[{shown(each)}]" for each in arguments] + needed + others


def shown(argument: Any) -> str:
    """An argument as the usage line has it."""
    return argument.name.upper() + ("..." if argument.nargs == -1 else "")


def longest(option: Any) -> str:
    """The long name of an option."""
    return max(option.opts, key=len)


def example(command: Any) -> str:
    """The command of the epilogue, without its markup."""
    return re.sub(r"\[/?dim\]", "", command.epilog).removeprefix("Example:").strip()


def argument_row(argument: Any) -> tuple[str, str]:
    """A row of the table of arguments."""
    return f"`{shown(argument)}`", plain(argument.help) + ("" if argument.required else " May be left out.")


def option_row(option: Any, kinds: dict[str, Any]) -> tuple[str, str, str, str]:
    """A row of the table of options."""
    names = [*sorted(option.opts, key=len, reverse=True), *option.secondary_opts]
    default = "needed" if option.required else default_of(option)
    return ", ".join(f"`{each}`" for each in names), value_of(option, kinds), default, plain(option.help)


def default_of(option: Any) -> str:
    """The default in words: nothing where plft decides, or where a switch is off."""
    if option.default in (None, False, [], ()):
        return ""
    return f"`{longest(option) if option.default is True else option.default}`"


def value_of(option: Any, kinds: dict[str, Any]) -> str:
    """What an option takes, in words; nothing for a switch."""
    found = kinds[option.name]
    while get_args(found):  # X | None, and list[X] of an option that may be given several times
        found = get_args(found)[0]
    return KINDS.get(found, "text") + (", repeatable" if option.multiple else "")


def table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A section with a table; nothing where there are no rows."""
    lines = [row(columns), "|" + "---|" * len(columns), *map(row, rows)]
    return f"\n## {title}\n\n" + "\n".join(lines) + "\n" if rows else ""


def row(cells: tuple[str, ...]) -> str:
    """A line of a table; a bar within a cell would end it."""
    return "| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |"


def plain(text: str) -> str:
    """A help text on one line, with the flags in it as code."""
    return re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", " ".join(text.split()))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for stale in FOLDER.glob("*.md"):
        stale.unlink()
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")

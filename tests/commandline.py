"""The command line in this process: what it printed, its exit code, and what it left in a folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from plft.apps import cli


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


class CommandLine:
    """Runs `plft` through its entry point, in this process, with what it prints caught."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words: str) -> Result:
        """Run one command; words: as the shell would hand them over, without `plft`."""
        self.capsys.readouterr()
        self.monkeypatch.setattr(sys, "argv", ["plft", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = self.capsys.readouterr()
        return Result(code, printed.out, printed.err)


def content_of(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, and every folder with None."""
    return {str(each.relative_to(folder)): each.read_bytes() if each.is_file() else None for each in folder.rglob("*")}

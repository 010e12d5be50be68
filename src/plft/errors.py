"""The one exception users see, and look-ups by name that suggest what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Row = TypeVar("Row")


class PlftError(Exception):
    """Something the user can put right: one line that says what, where and how to go on.

    The command line prints the message without a traceback and exits with 1.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string when none is close."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> PlftError:
    """Build the error for a name that is not in a table: what is known, and the nearest guess."""
    names = list(known)
    return PlftError(f"Unknown {kind} '{name}'. Known: {', '.join(names) or 'none'}.{did_you_mean(name, names)}")


def look_up(kind: str, name: str, table: Mapping[str, Row]) -> Row:
    """Return ``table[name]``; an unknown name is a PlftError that lists the known ones and suggests one."""
    if name not in table:
        raise unknown_name(kind, name, table)
    return table[name]


def first_three(offenders: Sequence[str], rest: str = "more") -> str:
    """Join the first three offenders and count the others: ``"a; b; c (and 4 more)"``."""
    shown = "; ".join(offenders[:3])
    return shown if len(offenders) <= 3 else f"{shown} (and {len(offenders) - 3} {rest})"


def missing_extra(package: str, extra: str, feature: str) -> PlftError:
    """Build the error for a feature whose optional package is not installed."""
    return PlftError(f"{feature} needs the package '{package}'. Install it with: pip install 'plft[{extra}]'")

"""Wrong inputs, one row each: the files, the command, and the one line that it must answer.

In `says`, "..." stands for any text. Every case starts in a folder that holds good.csv, and must leave it as it was.
"""

from __future__ import annotations

from .case import GOOD, MODELS, Case
from .files import COLUMNS, FORMATS
from .labels import LABELS, LETTERS, SPLITTING
from .language import LANGUAGE
from .models import NAMES
from .runs import FOLDERS
from .settings import ARGUMENTS, CONFIGS
from .using import USING

CASES = (*FORMATS, *COLUMNS, *LABELS, *SPLITTING, *LETTERS, *CONFIGS, *NAMES, *FOLDERS, *USING, *LANGUAGE, *ARGUMENTS)

__all__ = ["CASES", "GOOD", "MODELS", "Case"]

"""Run in a process of its own: go through a comparison, with `kill -9` at moments of its runs.

Arguments: a JSON file with [data, models, tunes, config], the folder, and moments. A moment is `step-N-M` (in the
middle of step M of the N-th run that is trained) or `between-N` (before the N-th); at the end it is left to finish.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from interrupted import DieAt, die
from plft import comparison

run_trial = comparison.run_trial


def go(arguments: list, folder: str, moment: str) -> int:
    """Compare in a child process; returns how it ended."""
    child = os.fork()
    if child == 0:
        kind, _, numbers = moment.partition("-")
        n_th, _, step = numbers.partition("-")
        begun = 0

        def counted(standings, trial, callbacks, command):
            nonlocal begun
            begun += 1
            if kind == "between" and begun == int(n_th):
                die()
            moments = [DieAt(f"step-{step}")] if kind == "step" and begun == int(n_th) else []
            return run_trial(standings, trial, [*callbacks, *moments], command)

        comparison.run_trial = counted
        data, models, tunes, config = arguments
        comparison.compare(data, models, tunes, folder, seeds=2, config=config)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    for each in [*sys.argv[3:], "never"]:
        print(go(given, sys.argv[2], each))

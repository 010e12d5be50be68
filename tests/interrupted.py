"""Run in a process of its own: start runs and kill each at a moment of its own, as `kill -9` would.

Argument: a JSON file with a list of [configuration, run folder, moment]. A moment is `step-N` (in the middle of a
step), `save-N` (right behind the checkpoint of step N), `scoring` (trained, not yet scored) or `never`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback

from plft import pipeline
from plft.config import make_config


def die(*ignored: object, **also_ignored: object) -> None:
    """End this process without any clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)


class DieAt(TrainerCallback):
    """Ends the process at a moment of the training."""

    def __init__(self, moment: str) -> None:
        self.kind, _, number = moment.partition("-")
        self.step = int(number or 0)

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if self.kind == "step" and state.global_step == self.step:
            die()

    def on_save(self, args, state, control, **kwargs) -> None:
        if self.kind == "save" and state.global_step == self.step:
            die()


def run(config: dict, folder: str, moment: str) -> int:
    """Train in a child process; returns how it ended."""
    child = os.fork()
    if child == 0:
        if moment == "scoring":
            pipeline.finish = die
        pipeline.train(make_config(config), folder, callbacks=[DieAt(moment)])
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        print(run(*each))

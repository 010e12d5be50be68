"""Run in a process of its own: load every saved model of a folder and compare its predictions with those on file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from grid import records
from plft.labels import TaskType
from plft.runfolder import load_predictor

checked = 0
for folder in sorted(Path(sys.argv[1]).iterdir()):
    expected = json.loads((folder / "expected.json").read_text())
    predictor = load_predictor(folder)
    task = TaskType(predictor.labels.task)
    family = folder.name.removesuffix(folder.name[folder.name.index(f"-{task.value}") :])
    sequences = [each.sequence for each in records(family, task)]
    for one, other in zip(predictor.probabilities(sequences), expected, strict=True):
        assert np.array_equal(one, np.array(other, dtype=np.float32)), folder.name
    checked += 1
print(checked)

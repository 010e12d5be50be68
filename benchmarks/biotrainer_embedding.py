"""Embeds sequences with biotrainer and prints speed and peak memory; run by speed.py, in biotrainer's environment.

PYTHON benchmarks/biotrainer_embedding.py CHECKPOINT SEQUENCES    one sequence per line; the first 16 warm up
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from biotrainer.embedders import get_embedding_service

WARMING = 16


def main() -> None:
    """Embed per protein, as biotrainer does for its per-sequence protocols."""
    service = get_embedding_service(sys.argv[1], custom_tokenizer_config=None, device=torch.device("cpu"))
    sequences = Path(sys.argv[2]).read_text().split()
    for each in (sequences[:WARMING], sequences):
        started = time.perf_counter()
        answered = sum(1 for _ in service.generate_embeddings(each, reduce=True))
        assert answered == len(each)
        taken = time.perf_counter() - started
    speed = sum(map(len, sequences)) / taken
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"speed": speed, "seconds": taken, "mb": memory}))


if __name__ == "__main__":
    main()

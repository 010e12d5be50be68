"""Language models that cannot be pretrained, adapted or asked for a perplexity."""

from __future__ import annotations

import gzip

from .case import DNA, FASTA, Case

PRETRAIN = "pretrain good.csv --arch tiny-esm2 --out out"
STEPS = f"{PRETRAIN} --steps 1"
BEGUN = "files: [good.csv]\nmodel: scratch:tiny-esm2\nsteps: 4\n"
DNA_FASTA = "".join(f">s{at}\n{sequence}\n" for at, sequence in enumerate(2 * DNA))

LANGUAGE = (
    Case(
        "pretraining without a budget",
        PRETRAIN,
        "Say how long to train: --minutes 30, --steps 2000 or --residues 20000000.",
    ),
    Case(
        "pretraining with two budgets",
        f"{STEPS} --minutes 1",
        "Give one budget, minutes, steps or residues (--minutes and --steps given).",
    ),
    Case(
        "a budget of no steps",
        f"{PRETRAIN} --steps 0",
        "Steps: input should be greater than or equal to 1 (given: 0).",
    ),
    Case(
        "an architecture with a slip",
        "pretrain good.csv --arch esm2-0.2n --steps 1 --out out",
        "Unknown scratch model 'esm2-0.2n'. Known: ... Did you mean 'esm2-0.2m'?",
    ),
    Case(
        "a width that the heads cannot share",
        "pretrain good.csv --arch esm2-6x100x7 --steps 1 --out out",
        "Scratch model 'esm2-6x100x7' cannot be built: ... Try 'esm2-6x98x7'.",
    ),
    Case(
        "pretraining a DNA model on proteins",
        "pretrain good.csv --arch tiny-dna --steps 1 --out out",
        "The sequences look like protein, but this model reads dna. Change one of them.",
    ),
    Case(
        "pretraining a protein model on DNA",
        "pretrain dna.fasta --arch tiny-esm2 --steps 1 --out out",
        "The sequences look like dna, but this model reads protein. Change one of them.",
        {"dna.fasta": DNA_FASTA},
    ),
    Case(
        "both strands of proteins",
        f"{STEPS} --both-strands",
        "--both-strands is for DNA, and this model reads proteins. Leave it out.",
    ),
    Case(
        "pretraining on a file that does not exist",
        "pretrain god.csv --arch tiny-esm2 --steps 1 --out out",
        "No such file: god.csv. Did you mean 'good.csv'?",
    ),
    Case(
        "a held-out file that does not exist",
        f"{STEPS} --valid god.csv",
        "No such file: god.csv. Did you mean 'good.csv'?",
    ),
    Case(
        "a general file that does not exist",
        "adapt good.csv --model model --general god.csv --steps 1 --out out",
        "No such file: god.csv. Did you mean 'good.csv'?",
        needs=("model",),
    ),
    Case(
        "pretraining on an empty FASTA",
        "pretrain empty.fasta --arch tiny-esm2 --steps 1 --out out",
        "empty.fasta: is empty. Give a file with at least one sequence.",
        {"empty.fasta": ""},
    ),
    Case(
        "pretraining on a damaged gzip file",
        "pretrain cut.fasta.gz --arch tiny-esm2 --steps 1 --out out",
        "cut.fasta.gz: is damaged or cut short (...). Fetch it again.",
        {"cut.fasta.gz": gzip.compress(FASTA.encode())[:-12]},
    ),
    Case(
        "nothing to predict",
        f"{STEPS} --rate 0",
        "Rate: input should be greater than 0 (given: 0.0).",
    ),
    Case(
        "more to predict than there is",
        f"{STEPS} --rate 1.5",
        "Rate: input should be less than 1 (given: 1.5).",
    ),
    Case(
        "a crop larger than the batch",
        f"{STEPS} --crop 512 --batch-residues 256",
        "A batch of 256 tokens cannot hold a crop of 512. Raise --batch-residues, or lower --crop.",
    ),
    Case(
        "an unknown precision of pretraining",
        f"{STEPS} --precision bf61",
        "Precision: 'bf61' is not known; choose from auto, fp32, bf16, fp16. Did you mean 'bf16'?",
    ),
    Case(
        "a tracker of pretraining with a slip",
        f"{STEPS} --report-to tensorbord",
        "Unknown tracker in training.report_to 'tensorbord'. Known: ... Did you mean 'tensorboard'?",
    ),
    Case(
        "a model is there already",
        "pretrain good.csv --arch tiny-esm2 --steps 1 --out model",
        "model exists already. Choose another --out, or pass --overwrite, or --resume.",
        needs=("model",),
    ),
    Case(
        "pretraining into a file",
        "pretrain good.csv --arch tiny-esm2 --steps 1 --out good.csv",
        "good.csv cannot be made: .../good.csv is not a folder to write in. Choose another --out.",
    ),
    Case(
        "--overwrite with bad sequences keeps what is there",
        "pretrain god.csv --arch tiny-esm2 --steps 1 --out out --overwrite",
        "No such file: god.csv. Did you mean 'good.csv'?",
        {"out/pretraining.yaml": BEGUN, "out/README.md": "a card"},
    ),
    Case(
        "--overwrite of a folder that somebody else made",
        "pretrain good.csv --arch tiny-esm2 --steps 1 --out model --overwrite",
        "model holds no pretraining.yaml, so plft did not make it. Choose another --out.",
        needs=("model",),
    ),
    Case(
        "pretraining resumed with other settings",
        f"{STEPS} --resume",
        "out was begun with other settings (steps). Resume with the same ones.",
        {"out/pretraining.yaml": BEGUN},
    ),
    Case(
        "pretraining resumed in a run of another kind",
        "pretrain good.csv --arch tiny-esm2 --steps 1 --out run --resume",
        "run exists already. Choose another --out, or pass --overwrite, or --resume.",
        needs=("run",),
    ),
    Case(
        "pretraining resumed with a damaged pretraining.yaml",
        f"{PRETRAIN} --resume",
        "pretraining.yaml, line ...: not valid YAML (...).",
        {"out/pretraining.yaml": "files: [good.csv\nmodel: scratch:tiny-esm2\n"},
    ),
    Case(
        "pretraining resumed with a wrong key in pretraining.yaml",
        f"{PRETRAIN} --resume",
        "Unknown key 'magic'; known here: ...",
        {"out/pretraining.yaml": f"{BEGUN}magic: 1\n"},
    ),
    Case(
        "pretraining resumed with damaged choices",
        "pretrain good.csv --arch tiny-esm2 --out out --resume",
        "out/choices.json is damaged and cannot be read (...). Copy the folder again.",
        {"out/pretraining.yaml": BEGUN, "out/choices.json": '{"crop": 5'},
    ),
    Case(
        "adapting nothing",
        "adapt good.csv --steps 1 --out out",
        "Missing option '--model'. See plft adapt --help.",
    ),
    Case(
        "adapting without a budget",
        "adapt good.csv --model model --out out",
        "Say how long to train: --minutes 30, --steps 2000 or --residues 20000000.",
        needs=("model",),
    ),
    Case(
        "adapting an encoder alone",
        "adapt good.csv --model model --steps 1 --out out",
        "model holds no language-model head (...",
        needs=("model",),
    ),
    Case(
        "adapting an adapter",
        "adapt good.csv --model only_an_adapter --steps 1 --out out",
        "only_an_adapter holds an adapter, not a model: give the model it was trained on, or the run folder.",
        needs=("only_an_adapter",),
    ),
    Case(
        "adapting a run",
        "adapt good.csv --model run --steps 1 --out out",
        "run has no config.json, so it is not a transformers model. Give the folder that holds it.",
        needs=("run",),
    ),
    Case(
        "adapting with an unknown method",
        "adapt good.csv --model scratch:tiny-esm2 --method dora --steps 1 --out out",
        "Method: 'dora' is not known; choose from full, lora. Did you mean 'lora'?",
    ),
    Case(
        "adapting with a rank of zero",
        "adapt good.csv --model scratch:tiny-esm2 --method lora --rank 0 --steps 1 --out out",
        "Rank: input should be greater than or equal to 1 (given: 0).",
    ),
    Case(
        "the perplexity of a file that does not exist",
        "score-lm scratch:tiny-esm2 god.csv",
        "No such file: god.csv. Did you mean 'good.csv'?",
    ),
    Case(
        "the perplexity of an encoder alone",
        "score-lm model good.csv",
        "model holds no language-model head (...",
        needs=("model",),
    ),
    Case(
        "perplexities with an unknown method",
        "score-lm scratch:tiny-esm2 good.csv --method exat",
        "ESM-2 is not scored with method 'exat'. Methods for it: exact, one-pass.",
    ),
    Case(
        "perplexities in one pass of a span model",
        "score-lm scratch:tiny-prott5 good.csv --method one-pass",
        "ProtT5 (encoder) is not scored with method 'one-pass'. Methods for it: exact.",
    ),
    Case(
        "perplexities over the input",
        "score-lm scratch:tiny-esm2 good.csv -o good.csv",
        "good.csv is the input, which the predictions would replace. Choose another --out.",
    ),
    Case(
        "perplexities of DNA by a protein model",
        "score-lm scratch:tiny-esm2 dna.fasta",
        "The sequences look like dna, but this model reads protein. Change one of them.",
        {"dna.fasta": DNA_FASTA},
    ),
)

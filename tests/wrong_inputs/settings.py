"""Configurations and arguments that make no run."""

from __future__ import annotations

from .case import GOOD, NUMBERS, TRAIN, Case, labelled

CONFIGS = (
    Case(
        "a whole section of settings as one value",
        f"train good.csv --set training=3 {TRAIN}",
        "--set training: it is a section of settings. Name one: training.KEY=VALUE.",
    ),
    Case(
        "YAML that does not parse",
        f"train --config c.yaml {TRAIN}",
        "c.yaml, line 3: not valid YAML (...).",
        {"c.yaml": "data:\n  file: [good.csv\ntask: auto\n"},
    ),
    Case(
        "YAML that is a list",
        f"train --config c.yaml {TRAIN}",
        "c.yaml: expected sections such as data: and model:, found a list.",
        {"c.yaml": "- good.csv\n"},
    ),
    Case(
        "an empty configuration",
        f"train --config c.yaml {TRAIN}",
        "c.yaml: expected sections such as data: and model:, found nothing.",
        {"c.yaml": ""},
    ),
    Case(
        "a configuration that is not text",
        f"train --config c.yaml {TRAIN}",
        "c.yaml cannot be read as a YAML text file: it is not UTF-8 text.",
        {"c.yaml": b"\xff\xfe\x00\x01"},
    ),
    Case(
        "a configuration that does not exist",
        f"train --config c.yaml {TRAIN}",
        "There is no configuration file c.yaml.",
    ),
    Case(
        "a configuration that is a folder",
        f"train --config data {TRAIN}",
        "data cannot be read as a YAML text file: Is a directory.",
        {"data/train.csv": GOOD},
    ),
    Case(
        "an unknown key",
        f"train --config c.yaml {TRAIN}",
        "Configuration: unknown key 'training.learning_rte'; known here: ... Did you mean 'learning_rate'?",
        {"c.yaml": "data: {file: good.csv}\ntraining: {learning_rte: 0.1}\n"},
    ),
    Case(
        "an unknown section",
        f"train --config c.yaml {TRAIN}",
        (
            "Configuration: unknown key 'trainig'; known here: task, data, model, tuning, training, calibration, "
            "baselines. Did you mean 'training'?"
        ),
        {"c.yaml": "data: {file: good.csv}\ntrainig: {epochs: 1}\n"},
    ),
    Case(
        "a section that is a number",
        f"train --config c.yaml {TRAIN}",
        "c.yaml: 'training' is a section of settings, but holds a number.",
        {"c.yaml": "data: {file: good.csv}\ntraining: 3\n"},
    ),
    Case(
        "a data section that is text",
        f"train --config c.yaml {TRAIN}",
        "c.yaml: 'data' is a section of settings, but holds a text.",
        {"c.yaml": "data: good.csv\n"},
    ),
    Case(
        "a value of the wrong type",
        f"train good.csv --set training.epochs=many {TRAIN}",
        (
            "Configuration: training.epochs: input should be a valid number, unable to parse string as a number "
            "(given: 'many')."
        ),
    ),
    Case(
        "a value out of range",
        f"train good.csv --set training.warmup_share=1.5 {TRAIN}",
        "Configuration: training.warmup_share: input should be less than 1 (given: 1.5).",
    ),
    Case(
        "a negative number of epochs",
        f"train good.csv --epochs -1 {TRAIN}",
        "Configuration: training.epochs: input should be greater than 0 (given: -1.0).",
    ),
    Case(
        "no time for the baselines",
        f"train good.csv --set baselines.minutes=0 {TRAIN}",
        "Configuration: baselines.minutes: input should be greater than 0 (given: 0).",
    ),
    Case(
        "a learning rate that is not a number",
        f"train good.csv --set training.learning_rate=.nan {TRAIN}",
        "Configuration: training.learning_rate: input should be a finite number (given: nan).",
    ),
    Case(
        "--set without a value",
        f"train good.csv --set training.epochs {TRAIN}",
        "--set 'training.epochs' is not of the form section.key=value, for example training.epochs=5.",
    ),
    Case(
        "--set with broken YAML",
        f"train good.csv --set 'training.epochs=[1' {TRAIN}",
        "--set 'training.epochs=[1': the value is not valid YAML; put quotes around it.",
    ),
    Case(
        "--set in a section that there is not",
        f"train good.csv --set trainig.epochs=3 {TRAIN}",
        (
            "Unknown section of --set 'trainig'. Known: data, model, tuning, training, calibration, baselines. "
            "Did you mean 'training'?"
        ),
    ),
    Case(
        "--set inside something that is no section",
        f"train good.csv --set task.name=auto {TRAIN}",
        "Unknown section of --set 'task'. Known: data, model, tuning, training, calibration, baselines.",
    ),
    Case(
        "--set of an unknown key",
        f"train good.csv --set training.epoch=3 {TRAIN}",
        "Configuration: unknown key 'training.epoch'; known here: ... Did you mean 'epochs'?",
    ),
    Case(
        "--set with three levels",
        f"train good.csv --set training.epochs.first=3 {TRAIN}",
        "Configuration: unknown key 'training.epochs.first'; known here: ... Did you mean 'epochs'?",
    ),
    Case(
        "nothing to train on",
        f"train {TRAIN}",
        "Nothing to train on: name a file, plft train DATA --out RUN, or data.file in --config.",
    ),
    Case(
        "an unknown task",
        f"train good.csv --task classification {TRAIN}",
        (
            "Configuration: task: 'classification' is not known; choose from auto, seq_classification, "
            "seq_regression, token_classification, token_regression, seq_multilabel. Did you mean "
            "'seq_classification'?"
        ),
    ),
    Case(
        "an unknown task for check",
        "check good.csv --task seq_clasification",
        (
            "Unknown task 'seq_clasification'. Known: seq_classification, seq_regression, token_classification, "
            "token_regression, seq_multilabel. Did you mean 'seq_classification'?"
        ),
    ),
    Case(
        "fp16 without a GPU",
        f"train good.csv --set training.precision=fp16 {TRAIN}",
        "precision fp16 needs a CUDA device. Use auto, fp32 or bf16.",
    ),
    Case(
        "fp16 for T5",
        "train good.csv --set training.precision=fp16 --model scratch:tiny-prott5 --max-steps 1 --out out",
        "precision fp16: ProtT5 (encoder) overflows to NaN in fp16. Use bf16 or fp32.",
    ),
    Case(
        "more residues than the model takes",
        "train good.csv --set data.max_residues=100000 --model scratch:tiny-protbert --max-steps 1 --out out",
        "data.max_residues 100000: ProtBert and ProtBert-BFD takes at most 1022 residues.",
    ),
    Case(
        "class weights for a regression",
        f"train n.csv --task seq_regression --set training.class_weights=balanced {TRAIN}",
        "training.class_weights: a regression has no classes. Remove it, or use a weight column.",
        {"n.csv": NUMBERS},
    ),
    Case(
        "a weight for a class that there is not",
        f"train good.csv --set 'training.class_weights={{yse: 2}}' {TRAIN}",
        "Unknown class in training.class_weights 'yse'. Known: no, yes. Did you mean 'yes'?",
    ),
    Case(
        "every class weight 0",
        f"train good.csv --set 'training.class_weights={{yes: 0, no: 0}}' {TRAIN}",
        "training.class_weights: every class has the weight 0, so nothing is learned. Raise one.",
    ),
    Case(
        "a class weight below 0",
        f"train good.csv --set 'training.class_weights={{yes: -2}}' {TRAIN}",
        "Configuration: training.class_weights.yes: input should be greater than or equal to 0 (given: -2).",
    ),
    Case(
        "isotonic calibration of three classes",
        f"train three.csv --set calibration.method=isotonic {TRAIN}",
        "calibration.method isotonic needs two classes, which seq_classification here has not. Pass auto.",
        {"three.csv": labelled("no yes maybe no yes maybe no yes")},
    ),
    Case(
        "calibrated probabilities of a regression",
        f"train n.csv --task seq_regression --set calibration.method=temperature {TRAIN}",
        "calibration.method temperature needs classes, which seq_regression here has not. Pass auto.",
        {"n.csv": NUMBERS},
    ),
    Case(
        "a level in percent",
        f"train good.csv --set calibration.level=90 {TRAIN}",
        "Configuration: calibration.level: input should be less than 1 (given: 90).",
    ),
    Case(
        "a tracker that there is not",
        f"train good.csv --set training.report_to=[nosuch] {TRAIN}",
        "Unknown tracker in training.report_to 'nosuch'. Known: ...",
    ),
)

ARGUMENTS = (
    Case(
        "a command that there is not",
        "trian good.csv",
        "No such command 'trian'. Did you mean 'train', 'pretrain'? See plft --help.",
    ),
    Case("an option that there is not", "check good.csv --frob", "No such option: --frob. See plft check --help."),
    Case("an argument is missing", "check", "Missing argument 'data'. See plft check --help."),
    Case(
        "one argument too many",
        "check good.csv more.csv",
        "Got unexpected extra argument(s) (more.csv). See plft check --help.",
    ),
    Case(
        "an option without its value",
        "train good.csv --model",
        "Option '--model' requires an argument. See plft --help.",
    ),
    Case(
        "text for a number",
        "train good.csv --epochs many",
        (
            "Invalid value for '--epochs': Input should be a valid number, unable to parse string as a number. "
            "See plft train --help."
        ),
    ),
)

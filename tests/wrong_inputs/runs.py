"""Run folders that are damaged, in the way, or not what they are taken for."""

from __future__ import annotations

from .case import Case, cut, edit, half_way, point_at, remove

FOLDERS = (
    Case(
        "a run is there already",
        "train good.csv --model scratch:tiny-esm2 --max-steps 1 --out run",
        "run holds a run already. Pass --resume to go on, --overwrite to replace it, or another --out.",
        needs=("run",),
    ),
    Case(
        "something else is there",
        "train good.csv --model scratch:tiny-esm2 --max-steps 1 --out data",
        "data exists and is not a run folder. Choose another --out.",
        {"data/notes.txt": "mine"},
    ),
    Case(
        "--overwrite of something else",
        "train good.csv --model scratch:tiny-esm2 --out data --overwrite",
        "data exists and is not a run folder. Choose another --out.",
        {"data/notes.txt": "mine"},
    ),
    Case(
        "--overwrite with bad data keeps the run",
        "train god.csv --model scratch:tiny-esm2 --max-steps 1 --out run --overwrite",
        "No such file: god.csv. Did you mean 'good.csv'?",
        needs=("run",),
    ),
    Case(
        "--overwrite with a bad model keeps the run",
        "train good.csv --tune last-99 --model scratch:tiny-esm2 --out run --overwrite",
        "tuning.method last-99: the model has only 2 blocks.",
        needs=("run",),
    ),
    Case(
        "--out is a file",
        "train good.csv --model scratch:tiny-esm2 --max-steps 1 --out good.csv",
        "good.csv exists and is not a run folder. Choose another --out.",
    ),
    Case(
        "--out inside a file",
        "train good.csv --model scratch:tiny-esm2 --max-steps 1 --out good.csv/run",
        "good.csv/run cannot be made: .../good.csv is not a folder to write in. Choose another --out.",
    ),
    Case(
        "nothing to resume",
        "train good.csv --model scratch:tiny-esm2 --max-steps 1 --out out --resume",
        "out holds no run to resume. Leave out --resume to start one.",
    ),
    Case(
        "resuming with a damaged run.yaml",
        "train --out run --resume",
        "run.yaml, line ...: not valid YAML (...).",
        {},
        ("run",),
        lambda folder: (folder / "run/run.yaml").write_text("data: {file: good.csv\n"),
    ),
    Case(
        "resuming from a checkpoint cut short",
        "train --out run --resume",
        (
            "run/checkpoints/checkpoint-1 is damaged (...). Delete that folder: --resume then goes on from the "
            "checkpoint before it."
        ),
        {},
        ("run",),
        half_way("model.safetensors"),
    ),
    Case(
        "resuming from a damaged optimiser",
        "train --out run --resume",
        (
            "run/checkpoints/checkpoint-1 is damaged (...). Delete that folder: --resume then goes on from the "
            "checkpoint before it."
        ),
        {},
        ("run",),
        half_way("optimizer.pt"),
    ),
    Case(
        "--resume and --overwrite",
        "train --out run --resume --overwrite",
        "--resume goes on with a run and --overwrite replaces it. Give only one of them.",
        {},
        ("run",),
    ),
    Case(
        "a folder that is not a run",
        "predict data good.csv -o p.csv",
        (
            "data is neither a run nor a model: it has no run.yaml, plft.json or config.json. Give the folder of "
            "plft train --out."
        ),
        {"data/notes.txt": "mine"},
    ),
    Case(
        "a run that does not exist",
        "predict ./run9 good.csv -o p.csv",
        "There is no run folder './run9'. Give the folder of plft train --out, or the hub id of a checkpoint ...",
    ),
    Case(
        "a run without a model",
        "predict run good.csv -o p.csv",
        "run is a run without a trained model. Finish it with plft train --resume.",
        {"run/run.yaml": "task: auto\n"},
    ),
    Case(
        "trained weights missing",
        "predict run good.csv -o p.csv",
        "run/model/trained.safetensors is missing: the model folder is incomplete. Copy it again.",
        {},
        ("run",),
        remove("run/model/trained.safetensors"),
    ),
    Case(
        "trained weights cut short",
        "predict run good.csv -o p.csv",
        "run/model/trained.safetensors is damaged and cannot be read (...). Copy the folder again.",
        {},
        ("run",),
        cut("run/model/trained.safetensors"),
    ),
    Case(
        "the adapter missing",
        "predict run good.csv -o p.csv",
        "run/model/adapter/adapter_model.safetensors is missing: the model folder is incomplete. Copy it again.",
        {},
        ("run",),
        remove("run/model/adapter/adapter_model.safetensors"),
    ),
    Case(
        "the backbone's weights cut short",
        "predict run good.csv -o p.csv",
        ".../run/model/backbone: its weights cannot be loaded (...). Copy the model again.",
        {},
        ("run",),
        cut("run/model/backbone/model.safetensors"),
    ),
    Case(
        "the backbone's configuration missing",
        "predict run good.csv -o p.csv",
        (
            ".../run/model/backbone has no config.json, so it is not a transformers model. Give the folder that "
            "holds it."
        ),
        {},
        ("run",),
        remove("run/model/backbone/config.json"),
    ),
    Case(
        "plft.json cut short",
        "predict run good.csv -o p.csv",
        "run/model/plft.json is damaged and cannot be read (...). Copy the folder again.",
        {},
        ("run",),
        cut("run/model/plft.json"),
    ),
    Case(
        "plft.json that is a list",
        "predict run good.csv -o p.csv",
        "run/model/plft.json is damaged: it should hold a JSON object. Copy the folder again.",
        {},
        ("run",),
        lambda folder: (folder / "run/model/plft.json").write_text("[]"),
    ),
    Case(
        "plft.json without labels",
        "predict run good.csv -o p.csv",
        "run/model/plft.json is damaged (...). Copy the folder again.",
        {},
        ("run",),
        edit("run/model/plft.json", labels=None),
    ),
    Case(
        "plft.json with empty labels",
        "predict run good.csv -o p.csv",
        "run/model/plft.json is damaged ('classes'). Copy the folder again.",
        {},
        ("run",),
        edit("run/model/plft.json", labels={}),
    ),
    Case(
        "plft.json with an unknown tuning method",
        "predict run good.csv -o p.csv",
        "Unknown tuning method 'magic'. Known: ...",
        {},
        ("run",),
        edit("run/model/plft.json", tuning={"method": "magic"}),
    ),
    Case(
        "plft.json with an unknown setting",
        "predict run good.csv -o p.csv",
        "run/model/plft.json is damaged (...). Copy the folder again.",
        {},
        ("run",),
        edit("run/model/plft.json", tuning={"magic": 1}),
    ),
    Case(
        "plft.json with other labels than the weights",
        "predict run good.csv -o p.csv",
        (
            "run/model/trained.safetensors: weight 'head.mlp.4.bias' does not fit this model. The file belongs to"
            " another run or is damaged."
        ),
        {},
        ("run",),
        edit(
            "run/model/plft.json",
            labels={
                "task": "seq_classification",
                "classes": ["a", "b", "c"],
                "columns": ["label"],
                "mean": [],
                "scale": [],
                "missing": None,
            },
        ),
    ),
    Case(
        "plft.json of a later version",
        "predict run good.csv -o p.csv",
        "run/model: written by another version of plft (format 99, this one reads 1).",
        {},
        ("run",),
        edit("run/model/plft.json", format=99),
    ),
    Case(
        "a head that came from Python",
        "predict run good.csv -o p.csv",
        "run/model: made with a head of your own (GraphHead). Pass it: plft.load(..., head=...).",
        {},
        ("run",),
        edit("run/model/plft.json", custom_head="GraphHead"),
    ),
    Case(
        "the base model has changed",
        "predict run good.csv -o p.csv",
        (
            "The base model model is not the one this run was trained on (its weights have another sha256). "
            "Restore it, or use a folder made with plft export."
        ),
        {},
        ("run", "model"),
        point_at("model"),
    ),
    Case(
        "the base model is gone",
        "predict run good.csv -o p.csv",
        "'./gone' is not a folder. Give one that holds config.json, a hub id or a known name.",
        {},
        ("run",),
        point_at("./gone"),
    ),
    Case(
        "a model without a trained head",
        "predict model good.csv -o p.csv",
        "model has no trained head (EsmModel): give a run folder, or train one with plft train.",
        needs=("model",),
    ),
    Case(
        "a report from damaged metrics",
        "report run",
        "run/metrics.json is damaged (...). Restore the file, or train again.",
        {},
        ("run",),
        cut("run/metrics.json"),
    ),
    Case(
        "a report from metrics that are a list",
        "report run",
        "run/metrics.json is damaged (it holds no sections). Restore the file, or train again.",
        {},
        ("run",),
        lambda folder: (folder / "run/metrics.json").write_text("[1, 2]"),
    ),
    Case(
        "a report from metrics without splits",
        "report run",
        "run/metrics.json: no split was evaluated. Train again with a valid or test split.",
        {},
        ("run",),
        edit("run/metrics.json", splits=None),
    ),
    Case(
        "a report from splits that are a list",
        "report run",
        "run/metrics.json: no split was evaluated. Train again with a valid or test split.",
        {},
        ("run",),
        edit("run/metrics.json", splits=["test"]),
    ),
    Case(
        "a report from metrics with text for numbers",
        "report run",
        "run/metrics.json is damaged (no metrics of test). Restore it, or train again.",
        {},
        ("run",),
        edit("run/metrics.json", splits={"test": "good"}),
    ),
    Case(
        "a report without metrics",
        "report run",
        "run: there is no metrics.json, so this is not a finished run. Give the folder of plft train --out.",
        {},
        ("run",),
        remove("run/metrics.json"),
    ),
    Case(
        "a report from a damaged history",
        "report run",
        "run/history.jsonl is damaged (...). Restore the file, or train again.",
        {},
        ("run",),
        cut("run/history.jsonl", 0.9),
    ),
    Case(
        "a report from a damaged environment",
        "report run",
        "run/environment.json is damaged (...). Restore the file, or train again.",
        {},
        ("run",),
        cut("run/environment.json"),
    ),
    Case(
        "a report of something else",
        "report data",
        "data: there is no run.yaml, so this is not a finished run. Give the folder of plft train --out.",
        {"data/notes.txt": "mine"},
    ),
    Case(
        "an export over a folder",
        "export run -o data",
        "data exists. Choose another --out.",
        {"data/notes.txt": "mine"},
        ("run",),
    ),
    Case(
        "an export of something else",
        "export data -o exported",
        "data is not a run folder: it has no run.yaml. Give a folder that plft train made.",
        {"data/notes.txt": "mine"},
    ),
    Case(
        "an export of a damaged run",
        "export run -o exported",
        "run/model/trained.safetensors is damaged and cannot be read (...). Copy the folder again.",
        {},
        ("run",),
        cut("run/model/trained.safetensors"),
    ),
    Case(
        "an export into a file",
        "export run -o good.csv/exported",
        "good.csv/exported cannot be made: .../good.csv is not a folder to write in. Choose another --out.",
        {},
        ("run",),
    ),
    Case(
        "a demo over a run",
        "demo --out run",
        "run holds a run already. Pass --resume to go on, --overwrite to replace it, or another --out.",
        needs=("run",),
    ),
)

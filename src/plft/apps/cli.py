"""The command line. Each command parses its arguments, calls the library, and hands what comes back to `console`.

Exit codes: 0 done, 1 something the user can put right (one line on standard error), 2 our bug (with a traceback).
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from plft import __version__
from plft.apps import comparing, language, scoring, searching, splitting
from plft.apps.failures import GOING_ON, unforeseen, wording
from plft.errors import PlftError
from plft.ranks import is_first

app = typer.Typer(
    name="plft",
    help="Fine-tune protein and DNA language models on your labelled sequences.",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

IdOption = Annotated[str | None, typer.Option("--id-column", help="Column of the identifiers.")]
FileArgument = Annotated[
    str, typer.Argument(help="Table (csv, tsv, jsonl, parquet) or FASTA, compressed or not.", show_default=False)
]
DataArgument = Annotated[
    str,
    typer.Argument(
        help="Table (csv, tsv, jsonl, parquet), FASTA, or a folder with train/valid/test.", show_default=False
    ),
]
RunArgument = Annotated[
    str, typer.Argument(help="Run folder, exported folder, or a checkpoint with its own head.", show_default=False)
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label-column", help="Label column; give it several times for a multi-output regression."),
]
SequenceOption = Annotated[str | None, typer.Option("--sequence-column", help="Sequence column.")]
SplitColumnOption = Annotated[str | None, typer.Option("--split-column", help="Column that says train, valid or test.")]
MissingOption = Annotated[str | None, typer.Option("--missing", help="Sentinel of a missing label, for example 999.")]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="seq_classification, seq_regression, token_classification, token_regression, seq_multilabel, or auto.",
    ),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that the model brings along (needs a pinned revision).")
]
PrecisionOption = Annotated[str, typer.Option("--precision", help="fp32 (the same everywhere), bf16 (faster) or auto.")]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Processes that share the work.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def example(command: str) -> str:
    """The epilogue of a command's help: one complete example."""
    return f"[dim]Example:[/dim]  {command}"


def version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"plft {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune protein and DNA language models on your labelled sequences."""


def data_values(
    data: str | None,
    valid: str | None = None,
    test: str | None = None,
    sequence_column: str | None = None,
    label_column: list[str] | None = None,
    split_column: str | None = None,
    missing: str | None = None,
    unknown_letters: str | None = None,
) -> dict[str, Any]:
    """The data section that the flags describe, without those that were not given."""
    labels = label_column[0] if label_column and len(label_column) == 1 else label_column
    values = {
        "file": data,
        "valid": valid,
        "test": test,
        "sequence_column": sequence_column,
        "label_column": labels,
        "split_column": split_column,
        "missing": missing,
        "unknown_letters": unknown_letters,
    }
    return {key: value for key, value in values.items() if value}


@app.command(epilog=example("plft check proteins.csv"))
def check(
    data: DataArgument,
    valid: Annotated[str | None, typer.Option(help="File with the validation part.")] = None,
    test: Annotated[str | None, typer.Option(help="File with the test part.")] = None,
    task: TaskOption = None,
    sequence_column: SequenceOption = None,
    label_column: LabelOption = None,
    split_column: SplitColumnOption = None,
    missing: MissingOption = None,
    leakage: Annotated[
        bool, typer.Option("--leakage", help="Also search the other splits for relatives of training sequences.")
    ] = False,
    identity: Annotated[
        float | None,
        typer.Option(help="Identity from which sequences are related (--leakage); 0.3, for DNA and RNA 0.8."),
    ] = None,
    coverage: Annotated[float, typer.Option(help="Share of a sequence that the alignment spans (--leakage).")] = 0.8,
    json: JsonOption = False,
) -> None:
    """What a file holds and what is wrong with it, before anything is trained."""
    from plft import console
    from plft.audit import audit
    from plft.config import data_config
    from plft.homology import COVERAGE
    from plft.labels import TaskType
    from plft.leakage import find_leakage
    from plft.records import load_data

    if (identity is not None or coverage != COVERAGE) and not leakage:
        raise PlftError("--identity and --coverage have no effect without --leakage. Add it, or leave them out.")
    given = data_values(data, valid, test, sequence_column, label_column, split_column, missing)
    values = data_config(given | {"file": data})
    with console.progress_bar() as progress:
        progress.add_task("reading", total=None)
        records = load_data(values.file, values.valid, values.test, values.columns)
        chosen = None if task in (None, "auto") else TaskType.named(task)
        findings = audit(records, chosen, missing=missing, columns=values.columns.labels)
        leaks = find_leakage(records, identity, coverage) if leakage else None
    if json:
        console.as_json(findings.to_json() | ({"leakage": leaks.to_json()} if leaks else {}))
        return
    console.findings(findings, Path(data).name)
    if leaks is not None:
        console.leakage(leaks)


app.command("split", epilog=example("plft split proteins.csv -o split.csv --by stratified"))(splitting.split)


@app.command(epilog=example("plft train proteins.csv --model builtin:protein --tune lora --out run1"))
def train(
    data: Annotated[
        str | None, typer.Argument(help="Table, FASTA or folder (may also come from --config).", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder to make.")] = Path("run"),
    model: Annotated[
        str | None,
        typer.Option(
            help="builtin:protein (builtin:dna for DNA), a local folder, a hub id, a short name, or scratch:NAME."
        ),
    ] = None,
    task: TaskOption = None,
    tune: Annotated[str | None, typer.Option(help="head, lora, dora, qlora, ia3, adapter, last-N or full.")] = None,
    head: Annotated[str | None, typer.Option(help="mlp, linear, cnn or light_attention.")] = None,
    pooling: Annotated[str | None, typer.Option(help="mean, max, cls or attention.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training sequences.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch_residues: Annotated[int | None, typer.Option(help="Tokens per batch, padding included.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed.")] = None,
    valid: Annotated[str | None, typer.Option(help="File with the validation part.")] = None,
    test: Annotated[str | None, typer.Option(help="File with the test part.")] = None,
    sequence_column: SequenceOption = None,
    label_column: LabelOption = None,
    split_column: SplitColumnOption = None,
    missing: MissingOption = None,
    unknown_letters: Annotated[str | None, typer.Option(help="map, error or drop.")] = None,
    trust_remote_code: TrustOption = False,
    config: Annotated[Path | None, typer.Option("--config", help="YAML configuration; flags override it.")] = None,
    set: Annotated[list[str] | None, typer.Option("--set", help="Any setting: section.key=value.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of an interrupted run.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what the run would take: size, steps, time and memory.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train a model on labelled sequences and leave a run folder with report, metrics and model."""
    from plft.config import configured

    source = config if config is not None else out / "run.yaml" if resume and (out / "run.yaml").exists() else None
    flags = {
        "data": data_values(data, valid, test, sequence_column, label_column, split_column, missing, unknown_letters),
        "model": {"name": model, "head": head, "pooling": pooling, "trust_remote_code": trust_remote_code or None},
        "tuning": {"method": tune},
        "training": {
            "epochs": epochs,
            "max_steps": max_steps,
            "learning_rate": learning_rate,
            "batch_residues": batch_residues,
            "seed": seed,
        },
    }
    chosen = configured(source, flags, task, set or [], resumed=resume and config is None)
    if chosen is None:
        raise PlftError("Nothing to train on: name a file, plft train DATA --out RUN, or data.file in --config.")
    if plan:
        from plft.apps.plan import show_plan

        quiet_libraries()
        show_plan(chosen, json)
        return
    run_and_show(chosen, out, resume=resume, overwrite=overwrite, json=json)
    if not json:
        closing_lines(out)


app.command("tune", epilog=example("plft tune proteins.csv --tune lora --minutes 60 --out search"))(searching.tune)


def run_and_show(config: Any, out: Path, *, resume: bool, overwrite: bool, json: bool = False) -> None:
    """Train with progress on the console, then show the metrics."""
    from plft import console
    from plft.apps.progress import TrainingProgress
    from plft.apps.results import show_metrics
    from plft.pipeline import train as train_run

    quiet_libraries()
    with console.progress_bar() as bar:
        run = train_run(
            config,
            out,
            resume=resume,
            overwrite=overwrite,
            say=console.say,
            callbacks=[TrainingProgress(bar)],
            command=shlex.join(["plft", *sys.argv[1:]]),
        )
    if not is_first():
        return
    metrics = run.metrics
    if json:
        console.as_json(metrics)
    else:
        show_metrics(metrics)


def closing_lines(out: Path, sequences: str = "SEQUENCES.fasta") -> None:
    """The last lines of a run: its report, and the command to type next."""
    from plft import console

    console.result(f"\nreport: {out / 'report.html'}\nnext: plft predict {out} {sequences} -o predictions.csv")


def quiet_libraries() -> None:
    """Keep transformers' own bars and warnings off the screen; ours say what matters."""
    import warnings

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|peft|accelerate|transformers|bitsandbytes")


@app.command(epilog=example("plft evaluate run1 more.csv"))
def evaluate(
    run: RunArgument,
    data: Annotated[
        str | None, typer.Argument(help="Labelled file; without it the run's own data.", show_default=False)
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which split; by default test, or the whole file where it has none.")
    ] = None,
    sequence_column: SequenceOption = None,
    label_column: LabelOption = None,
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Metrics with 95 % intervals on the run's own test split or on another labelled file."""
    from plft import console
    from plft.evaluation import evaluate as evaluate_run
    from plft.metrics import METRICS
    from plft.pipeline import columns_of

    quiet_libraries()
    if data is None and (sequence_column or label_column):
        raise PlftError("--sequence-column and --label-column are for another file. Name it, or leave them out.")
    columns = columns_of(run, sequence_column, label_column) if data else None
    scores = evaluate_run(run, data, split=split, columns=columns, trust_remote_code=trust_remote_code, say=console.say)
    if json:
        console.as_json(scores)
    else:
        names = {name: row.title for name, row in METRICS.items()}
        console.metrics_table(f"{scores['split']}: {scores['n']} sequences", scores["metrics"], names)


@app.command(epilog=example("plft predict run1 proteome.fasta.gz -o predictions.csv"))
def predict(
    run: RunArgument,
    data: FileArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Table to write: csv, tsv, jsonl or parquet.", show_default=False)
    ],
    sequence_column: SequenceOption = None,
    id_column: IdOption = None,
    trust_remote_code: TrustOption = False,
    precision: PrecisionOption = "fp32",
    workers: WorkersOption = 1,
) -> None:
    """Predict for every sequence of a file: streamed, in the file's order, written only when complete."""
    from plft import console
    from plft.pipeline import predict as predict_file

    quiet_libraries()
    with console.progress_bar() as bar:
        task = bar.add_task("sequences", total=None)
        answered = predict_file(
            run,
            data,
            out,
            sequence_column=sequence_column,
            id_column=id_column,
            trust_remote_code=trust_remote_code,
            precision=precision,
            workers=workers,
            each_batch=lambda n: bar.advance(task, n),
        )
    for sentence in answered.sentences:
        console.say(sentence)
    console.result(str(out))


@app.command(epilog=example("plft embed scratch:esm2-8m proteins.fasta -o embeddings.parquet"))
def embed(
    model: Annotated[str, typer.Argument(help="Run folder, or anything that --model takes.", show_default=False)],
    data: FileArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Table to write: csv, tsv, jsonl or parquet.", show_default=False)
    ],
    sequence_column: SequenceOption = None,
    id_column: IdOption = None,
    trust_remote_code: TrustOption = False,
    precision: PrecisionOption = "fp32",
    workers: WorkersOption = 1,
) -> None:
    """Write each sequence's mean hidden state over its residues."""
    from plft import console
    from plft.pipeline import embed as embed_file

    quiet_libraries()
    with console.progress_bar() as bar:
        task = bar.add_task("sequences", total=None)
        answered = embed_file(
            model,
            data,
            out,
            sequence_column=sequence_column,
            id_column=id_column,
            trust_remote_code=trust_remote_code,
            precision=precision,
            workers=workers,
            each_batch=lambda n: bar.advance(task, n),
        )
    for sentence in answered.sentences:
        console.say(sentence)
    console.result(str(out))


app.command(epilog=example("plft pretrain proteins.fasta.gz --arch esm2-1m --minutes 30 --out model"))(
    language.pretrain
)
app.command(epilog=example("plft adapt family.fasta --model builtin:protein --minutes 10 --out model"))(language.adapt)
app.command("score-lm", epilog=example("plft score-lm builtin:protein proteins.fasta -o scores.csv"))(scoring.score_lm)


app.command(
    epilog=example("plft compare proteins.csv --models builtin:protein,scratch:esm2-1m --tunes head,lora,full")
)(comparing.compare)


@app.command(epilog=example("plft models --json"))
def models(json: JsonOption = False) -> None:
    """What is known: families, scratch architectures, tuning methods, heads, tasks, metrics."""
    from plft import console
    from plft.apps.diagnosis import catalogue

    content = catalogue()
    if json:
        console.as_json(content)
    else:
        for title, rows in content.items():
            console.table(title, ("name", "what it is"), rows.items())
            console.result("")


@app.command(epilog=example("plft report run1"))
def report(run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)]) -> None:
    """Write report.html and the model card again from what the run folder holds."""
    from plft import console
    from plft.report import write_model_card, write_report

    console.result(str(write_report(run)))
    write_model_card(run)


@app.command(epilog=example("plft export run1 -o my-model"))
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make.", show_default=False)],
    trust_remote_code: TrustOption = False,
) -> None:
    """Write a stand-alone transformers folder, adapters merged into the weights."""
    from plft import console
    from plft.runfolder import RunFolder, check_place, export_model

    quiet_libraries()
    if out.exists():
        raise PlftError(f"{out} exists. Choose another --out.")
    check_place(out)
    RunFolder(run).read_config()
    export_model(RunFolder(run).model, out, trust_remote_code)
    console.result(f"{out}\nnext: plft predict {out} SEQUENCES.fasta -o predictions.csv")


@app.command(epilog=example("plft demo --out demo-run"))
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder to make.")] = Path("demo-run"),
    task: Annotated[
        str, typer.Option("--task", help="seq_classification, or token_classification for a region per residue.")
    ] = "seq_classification",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
) -> None:
    """The main job on simulated signal peptides, and what pretraining was worth in it; needs no network."""
    from plft import console
    from plft.apps import demonstration as shown
    from plft.pipeline import check_folder
    from plft.runfolder import RunFolder

    trials = shown.trials()
    for trial in trials:
        check_folder(RunFolder(shown.trial_folder(out, trial)), resume=False, overwrite=overwrite)
    for note in shown.NOTES:
        console.say(note)
    for trial in trials:
        console.result(f"\n{trial.title}")
        config, folder = shown.demo_config(out, task, trial), shown.trial_folder(out, trial)
        run_and_show(config, folder, resume=False, overwrite=overwrite)
    console.result("")
    console.table(
        "what pretraining is worth here", ("", "weights trained", "test", "95 % interval"), shown.comparison(out)
    )
    console.result("\nreal human proteins; what the model knows is simulated, so it can be wrong about them:")
    for line in shown.example_lines(out):
        console.result(line)
    closing_lines(out, str(shown.write_examples(out)))


@app.command(epilog=example("plft doctor --json"))
def doctor(json: JsonOption = False) -> None:
    """Versions, device, threads, and what an optional feature still misses."""
    from plft import console
    from plft.apps.diagnosis import diagnose

    content = diagnose()
    if json:
        console.as_json(content)
    else:
        console.table("plft doctor", ("what", "here"), content.items())


INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> None:
    """Entry point: run a command and turn what went wrong into an exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="plft", standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into an exit code, and hands it back
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except (PlftError, typer.TyperException) as error:
        from plft import console

        console.fail(wording(error))
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        command = " ".join(sys.argv[1:2])
        hint = GOING_ON.get(command, "").format(command)
        sys.stderr.write(f"\nInterrupted.{hint}\n")
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(unforeseen(error))


if __name__ == "__main__":
    main()

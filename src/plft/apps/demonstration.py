"""What `plft demo` runs: the main job on the simulated signal peptides that the package makes itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plft.builtin.demo import DEMO_NOTE, LABELS, write_demo
from plft.config import RunConfig, make_config
from plft.errors import look_up
from plft.metrics import METRICS
from plft.runfolder import RunFolder, read_json

PRETRAINED = "builtin:protein"
HEAD = {"head": "cnn", "head_width": 64, "head_kernel": 9}
N_SEQUENCES, EPOCHS = 1200, 4
MODEL_NOTE = (
    "The pretrained model is small (builtin:protein): it shows what pretraining is worth, not what a published model "
    "would reach."
)
NOTES = (DEMO_NOTE, MODEL_NOTE)


@dataclass(frozen=True)
class Trial:
    """One of the runs that the demo compares. suffix: of its folder's name; the main run has none."""

    title: str
    model: str
    tune: str
    suffix: str = ""


def trials() -> tuple[Trial, ...]:
    """Random weights of the same shape, the pretrained model with its head alone, and with LoRA: the main one last."""
    return (
        Trial("random weights, all of them trained", f"scratch:{PRETRAINED}", "full", "-scratch"),
        Trial("pretrained, the head alone", PRETRAINED, "head", "-head"),
        Trial("pretrained, LoRA", PRETRAINED, "lora"),
    )


# First residues of human proteins from UniProt; the first two begin with a signal peptide of 18 and 24 residues.
EXAMPLES = {
    "P02768 serum albumin (has a signal peptide)": (
        "MKWVTFISLLFLFSSAYSRGVFRRDAHKSEVAHRFKDLGEENFKALVLIAFAQYLQQCPFEDHVKLVNEV"
    ),
    "P01308 insulin (has a signal peptide)": "MALWMRLLPLLALLALWGPDPAAAFVNQHLCGSHLVEALYLVCGERGFFYTPKTRREAEDLQVGQVELGG",
    "P99999 cytochrome c (has none)": "MGDVEKGKKIFIMKCSQCHTVEKGGKHKTGPNLHGLFGRKTGQAPGYSYTAANKNKGIIWGEDTLMEYLE",
    "P0CG47 ubiquitin (has none)": "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLV",
}


def demo_config(out: Path, task: str, trial: Trial) -> RunConfig:
    """Write the demo data beside the main run's folder and return the configuration that trains on it.

    task: seq_classification or token_classification; another one is a PlftError.
    """
    look_up("demo task", task, LABELS)
    files = write_demo(data_folder(out), n=N_SEQUENCES)
    return make_config(
        {
            "task": task,
            "data": {"file": str(files[task])},
            "model": {"name": trial.model, **HEAD},
            "tuning": {"method": trial.tune},
            "training": {"epochs": EPOCHS, "early_stopping": None},
        }
    )


def trial_folder(out: Path, trial: Trial) -> Path:
    """The run folder of a trial, beside the main run's."""
    return out.with_name(f"{out.name}{trial.suffix}")


def comparison(out: Path) -> list[tuple[str, str, str, str]]:
    """What each trial trained and reached: title, weights trained, metric, its 95 % interval."""
    rows = []
    for trial in trials():
        folder = RunFolder(trial_folder(out, trial))
        scores = read_json(folder.metrics_file)["splits"]["test"]["metrics"]
        name, score = next(iter(scores.items()))
        trained = read_json(folder.environment_file)["parameters"]["trainable"]
        interval = f"{score['low']:.2f} to {score['high']:.2f}"
        rows.append((trial.title, f"{trained:,}", f"{METRICS[name].title} {score['value']:.2f}", interval))
    return rows


def data_folder(out: Path) -> Path:
    """The folder of the demo data that belongs to a run folder."""
    return out.with_name(f"{out.name}-data")


def write_examples(out: Path) -> Path:
    """Write the example proteins as FASTA beside the demo data and return the path."""
    path = data_folder(out) / "examples.fasta"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in EXAMPLES.items()), encoding="utf-8")
    return path


def example_lines(run: Path) -> Iterator[str]:
    """What the trained model says about the example proteins: a class with its probability, or a region per residue."""
    from plft.pipeline import load

    predictor = load(run)
    sequences = list(EXAMPLES.values())
    answers = zip(EXAMPLES.items(), predictor.predict(sequences), predictor.probabilities(sequences), strict=True)
    for (name, sequence), answer, probabilities in answers:
        if predictor.is_residue_task:
            yield f"{name}\n  {sequence}\n  {''.join(answer)}"
        else:
            yield f"{name}: {answer} (probability {probabilities.max():.2f})"

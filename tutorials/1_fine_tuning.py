# %% [markdown]
# # Fine-tuning a protein language model, part 1
#
# A protein language model has read many sequences and turns each residue into a vector of numbers (an embedding). This
# tutorial predicts a measured property from them in three steps: with the model frozen, with small additions to it
# (LoRA), and with all of its weights trained. Each step is built by hand from PyTorch parts first. At the end two
# commands do the same.
#
# The data is the GB1 landscape ([Wu et al. 2016](https://doi.org/10.7554/eLife.16965)): four positions of a protein
# were changed to every residue, and how well each variant binds was measured. We use the split of [Schmirler et al.
# 2024](https://doi.org/10.1038/s41467-024-51844-2), who fine-tuned ESM-2 and ProtT5 on it: training variants have at
# most three changes, test variants four.
#
# The model here is `builtin:protein`, 1.9 million weights, because it comes with plft and needs no network. With one,
# write `esm2-8m` or `facebook/esm2_t6_8M_UR50D` wherever `builtin:protein` stands; nothing else changes.

# %%
import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from torch import nn

import data
import plft
import rows
import show
from plft import PLMTaskModel, ProteinDataModule, ProteinTaskTrainer, TaskType
from plft.checkpoints import resolve

data.workplace("1_fine_tuning")
gb1 = data.table("schmirler_gb1/gb1.csv.gz", simulated="scan")

# %% [markdown]
# ## Look before you train
#
# The protein in this file has 265 residues, but only four of them ever differ. Averaged over the whole sequence their
# signal is diluted, and time is spent on 261 residues that say nothing. So we keep ten residues to either side.

# %%
table = data.read_csv(gb1.file)
columns = zip(*(row["sequence"] for row in table), strict=True)
differs = [at for at, column in enumerate(columns) if len(set(column)) > 1]
around = slice(max(0, differs[0] - 10), differs[-1] + 11)
data.write_csv("site.csv", [{**row, "sequence": row["sequence"][around]} for row in table])
print(f"Positions that differ: {differs} of {len(table[0]['sequence'])}; kept: {around.start} to {around.stop - 1}")

# %% [markdown]
# ## Step 1: frozen embeddings and a simple model
#
# The cheapest way: one vector per sequence (the mean over its residues) from the model as it is, and ridge regression
# on top. Spearman's rank correlation is what the field reports: is the best variant ranked first? Decisions are made on
# the part `valid`; the part `test` is for the end.

# %%
show.command("plft embed builtin:protein site.csv -o embeddings.parquet")
vectors = np.column_stack(pq.read_table("embeddings.parquet").drop_columns("id").columns)
values = np.array([float(row["label"]) for row in table])
part = np.array([row["split"] for row in table])
ridge = RidgeCV(np.logspace(-3, 3, 13)).fit(vectors[part == "train"], values[part == "train"])
on_valid = spearmanr(ridge.predict(vectors[part == "valid"]), values[part == "valid"]).statistic
print(f"Ridge regression on {vectors.shape[1]} numbers per sequence: Spearman {on_valid:.3f} on valid")

# %% [markdown]
# ## Step 2: the same as one network
#
# A network of two parts can be trained as a whole later: the language model (the *backbone*) and a small network on its
# embeddings (the *head*). A data module reads the file, spells sequences as the model expects, and gives training,
# validation and test sets.

# %%
checkpoint = resolve("builtin:protein")
module = ProteinDataModule(
    "site.csv", None, checkpoint.tokenizer, max_length=256, task=TaskType.SEQ_REGRESSION, config=checkpoint.config
)
sets = module.get_datasets()
print({name: len(each) for name, each in sets.items()})

# %% [markdown]
# A head is any PyTorch module that gets the hidden states, (sequences, residues, width), and a mask that is 1 for
# residues and 0 for padding. This one learns which residues matter, where a mean would count all alike.


# %%
class AttentionHead(nn.Module):
    """Weighs the residues, and predicts from their weighted mean."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.output = nn.Sequential(nn.Linear(width, 128), nn.Tanh(), nn.Dropout(0.1), nn.Linear(128, outputs))

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        scores = self.score(hidden_states).masked_fill(attention_mask.unsqueeze(-1) == 0, -1e4)
        return self.output((scores.softmax(dim=1) * hidden_states).sum(dim=1))


# %% [markdown]
# Three models: the backbone frozen; LoRA, which adds small trainable matrices to the attention layers and leaves the
# rest as it is; and everything trained. Frozen weights and added ones bear a larger learning rate than pretrained ones.


# %%
def model(freeze: bool = False) -> PLMTaskModel:
    torch.manual_seed(0)
    head = AttentionHead(checkpoint.width, outputs=1)
    return PLMTaskModel(TaskType.SEQ_REGRESSION, checkpoint.load_backbone(), head, freeze_backbone=freeze)


def lora() -> nn.Module:
    small_additions = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["query", "key", "value"])
    return get_peft_model(model(), small_additions)


ways = {"frozen": (model(freeze=True), 3e-3), "LoRA": (lora(), 3e-3), "full": (model(), 5e-4)}

# %%
curves, lines = {}, []
for way, (network, rate) in ways.items():
    trainer = ProteinTaskTrainer(
        network,
        train_dataset=sets["train"],
        eval_dataset=sets["validation"],
        output_dir=f"by-hand-{way}",
        num_train_epochs=gb1.either(3, 1),
        per_device_train_batch_size=32,
        learning_rate=rate,
        save_strategy="no",
    )
    started = time.monotonic()
    trainer.train()
    trained = sum(each.numel() for each in network.parameters() if each.requires_grad)
    scores = [(each["epoch"], each["eval_spearman"]) for each in trainer.state.log_history if "eval_spearman" in each]
    curves[way] = scores
    lines.append((way, trained, scores[-1][1], f"{time.monotonic() - started:.0f}"))
show.table(("backbone", "weights trained", "Spearman on valid", "seconds"), lines)

# %%
best = max(lines, key=lambda line: line[2])
show.curves(
    curves, ("epoch", "Spearman on valid"), f"After the last epoch {best[0]} is best on valid, with {best[2]:.2f}."
)

# %% [markdown]
# ## Other models want sequences spelled in another way
#
# ProtBert (`Rostlab/prot_bert`) wants spaces between residues and X for the rare U, Z, O and B. plft knows this for the
# families it recognises; for your own model say it with `preprocess_fn`. Here a tiny ProtBert with random weights
# stands in; with a network write `resolve("protbert")`.


# %%
def preprocess(sequence: str) -> str:
    return " ".join("X" if residue in "UZOB" else residue for residue in sequence.upper())


protbert = resolve("scratch:tiny-protbert")
spelled = ProteinDataModule(
    "site.csv", None, protbert.tokenizer, preprocess_fn=preprocess, max_length=256, task=TaskType.SEQ_REGRESSION
)
first = spelled.get_datasets()["train"][0]
print(preprocess("MKUV"), "->", protbert.tokenizer.tokenize(preprocess("MKUV")))
print("First training sequence:", protbert.tokenizer.convert_ids_to_tokens(first.input_ids)[:8], "...")

# %% [markdown]
# ## Four kinds of tasks
#
# One number or one class for a sequence, or one for every residue: the task is read off the labels, and plft puts the
# parts together itself in `plft.finetune`. Missing residue labels (999 in the disorder data) are neither learned nor
# scored. Here the head alone is trained, on small samples, so the intervals are wide.

# %%
few = {"train": 200, "valid": 50, "test": 60}
kinds = {
    "stability": data.table("tape_stability/stability.csv.gz", "seq_regression", few),
    "phosphatase sites": data.table("dephos_dtl/dephos_ST.csv.gz", "seq_classification", few),
    "disorder": data.table("disorder_chezod/chezod.csv.gz", "token_regression", few),
    "secondary structure": data.table("flip_secondary_structure/sampled.csv.gz", "token_classification", few),
}
lines = []
for name, each in kinds.items():
    config = {
        "data": {"file": each.file, "missing": "999"},
        "tuning": {"method": "head"},
        "training": {"epochs": 5},
        "baselines": {"run": False},
    }
    run = plft.finetune(config, out=f"kind-{name.replace(' ', '-')}")
    metric = run.metrics["main_metric"]
    lines.append(
        (name, run.metrics["task"], rows.with_interval(metric, run.metrics["splits"]["test"]["metrics"][metric]))
    )
show.table(("data", "task", "on 60 test sequences or fewer, 95 % interval"), lines)

# %% [markdown]
# ## A head that sees more than the sequence
#
# Columns of your table can reach the head as arguments. Here each residue comes with one neighbour in a graph, and the
# head mixes what it knows of the two. The graph is that of a helix, where residue i is bonded to residue i + 4; from a
# structure you would write the residue that is nearest in space. A few proteins are longer than what the model reads
# and are cut, so a neighbour may be missing; its residue then keeps to the last one there is.

# %%
helix = kinds["secondary structure"]
with open("graph.jsonl", "w", encoding="utf-8") as file:
    for row in data.read_csv(helix.file):
        last = len(row["sequence"]) - 1
        file.write(json.dumps({**row, "neighbour": [min(at + 4, last) for at in range(last + 1)]}) + "\n")


class GraphHead(nn.Module):
    """Predicts from a residue and its neighbour."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.output = nn.Sequential(nn.Linear(2 * width, 64), nn.ReLU(), nn.Linear(64, outputs))

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, neighbour: torch.Tensor
    ) -> torch.Tensor:
        places = neighbour.long().clamp(max=hidden_states.shape[1] - 1).unsqueeze(-1).expand_as(hidden_states)
        return self.output(torch.cat([hidden_states, hidden_states.gather(1, places)], dim=-1))


config = {
    "data": {"file": "graph.jsonl", "extra_columns": ["neighbour"]},
    "tuning": {"method": "head"},
    "training": {"epochs": 5},
    "baselines": {"run": False},
}
classes = len(plft.load("kind-secondary-structure").labels.classes)
run = plft.finetune(config, out="graph", head=GraphHead(checkpoint.width, classes))
metric = run.metrics["main_metric"]
print("With neighbours:", rows.with_interval(metric, run.metrics["splits"]["test"]["metrics"][metric]))

# %% [markdown]
# ## The same with two commands
#
# `plft train` does all of the above: it reads, trains, keeps the state that was best on `valid`, scores the test part
# once with an interval, and trains simple baselines on the same sequences, so that you see what fine-tuning added.

# %%
epochs = gb1.either(6, 1)
settings = f"--tune full --learning-rate 5e-4 --epochs {epochs} --set training.early_stopping=null"
show.command(f"plft train site.csv --model builtin:protein {settings} --set baselines.minutes=1 --out full")

# %%
data.write_csv("new.csv", [{"sequence": row["sequence"]} for row in data.read_csv("site.csv")[:3]])
show.command("plft predict full new.csv -o predictions.csv")
print(Path("predictions.csv").read_text())

# %% [markdown]
# `full/report.html` is a page with everything: the curve, every metric with its interval, the baselines, the worst
# mistakes.
#
# ## What came out
#
# Beside it LoRA, and the same shape from random weights, which says what pretraining was worth.

# %%
show.command(
    f"plft train site.csv --model builtin:protein --tune lora --learning-rate 3e-3 --epochs {epochs} "
    "--set training.early_stopping=null --set baselines.run=false --out lora"
)
show.command(f"plft train site.csv --model scratch:esm2-6x160x5 {settings} --set baselines.run=false --out scratch")

# %%
published = {
    "full": "ESM2-8M full .883, ProtT5 LoRA .879, one-hot ridge .750 (own)",
    "lora": "ESM2-8M LoRA .846, frozen .818",
    "scratch": "ESM2-8M from random weights .857",
}
for way, others in published.items():
    rows.record(
        gb1.is_real,
        f"GB1 fitness (three-vs-rest), {way}",
        f"{others} ([Schmirler et al. 2024](https://doi.org/10.1038/s41467-024-51844-2))",
        **rows.of_run(way),
    )

# %% [markdown]
# The published figures are of ESM-2 with 8 million weights, four times as many, on the whole 265 residues and the same
# split, so they compare; those of ProtT5 are of a model 600 times the size. Look at the interval before you call one
# better, and at the last line: where random weights come close, it is the labels and not pretraining that do the work.
#
# [Part 2](1b_comparison.py) asks the same of several models and tasks at once.

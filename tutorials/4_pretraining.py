# %% [markdown]
# # A language model of your own, on a budget
#
# *Cramming* asks how far a protein language model gets with one GPU and one day ([Frey et al.
# 2024](https://doi.org/10.1101/2024.05.14.594108): 67 million weights, 24 hours, comparable in use to models trained
# far longer). Here the day is minutes and the GPU two CPU cores. The steps are the same:
#
# 1. train a model from random weights on protein sequences alone;
# 2. go on training a model on one family, the lysozymes, and measure what it gains there and forgets elsewhere;
# 3. use the results for a prediction task, as any other model.
#
# The measure is *perplexity*: among how many residues the model hesitates, on average, at each position. 20 is a guess
# among all, about 18 is knowing how frequent each residue is.

# %%
import json
from pathlib import Path

import data
import plft
import rows
import show
from plft.records import read_records

data.workplace("4_pretraining")
proteins = data.sequences("pretrain_protein/train.fasta.gz", "proteins")
held_out = data.sequences("pretrain_protein/valid.fasta.gz", "other_proteins", rows=400)
lysozymes = data.sequences("lysozyme_pf00959/train.fasta.gz", "family")
test = data.sequences("lysozyme_pf00959/test.fasta.gz", "other_family", rows=1000)

# %% [markdown]
# ## Five minutes from random weights
#
# Residues are hidden and the model has to guess them from the rest. From the cramming recipe come the budget in time
# and not in steps, a quarter of the residues hidden, and linear layers without biases. plft fits the number of steps
# and the learning rate to the budget. A day on a GPU would be `--arch esm2-35m --minutes 1440`.

# %%
minutes = proteins.either(5, 0.15)
show.command(
    f"plft pretrain {proteins} --valid {held_out} --arch esm2-1m --no-biases --rate 0.25 --minutes {minutes} "
    "--out crammed"
)

# %%
if Path("crammed/curve.svg").exists():
    show.picture(Path("crammed/curve.svg"))


# %% [markdown]
# *Counting alone* is the bar to clear: the unigram perplexity knows how frequent each residue is, the bigram perplexity
# also the residue before. A model that is not below them has learned nothing about proteins.
#
# What would more time give? `builtin:protein` was made by `plft pretrain` too, with a larger model and 15 % hidden. Its
# card says: 15.2 after 8 minutes, 14.7 after 34, 13.9 after 145, 12.8 after 249 and 11.9 after 375, the last
# 230 of them with Muon.
# Most is learned early, and the rest is expensive.

# %% [markdown]
# ## Adapting to a family
#
# With few labels but many relatives of your protein, let the model read these first. `plft adapt` goes on with the
# model's own objective. `--valid` measures on lysozymes that it does not see: exact copies of training sequences are
# taken out of it, and the output says how many (the published split has 417 in 2,000). `--general` measures on other
# proteins, so what it forgets is seen too. The budget is in residues here, a seventh of the family: the result is then
# the same on a slow machine.

# %%
budget = lysozymes.either(500_000, 20_000)
show.command(
    f"plft adapt {lysozymes} --model builtin:protein --valid {test} --general {held_out} --residues {budget} "
    "--out lysozymes"
)

# %% [markdown]
# ## The same with a causal model
#
# A causal model (ProtGPT2, ProGen) reads from left to right and guesses what comes next, so it can also write
# sequences. Nothing changes but the name of the architecture. Its tokens hold several residues, so its perplexities are
# larger and must not be compared with those above. For the same reason counting is a harder bar here: a vocabulary of
# thousands of pieces takes longer to learn than 20 residues, and three minutes need not be enough to pass the bigrams.

# %%
show.command(
    f"plft pretrain {proteins} --valid {held_out} --arch protgpt2-1m --minutes {proteins.either(3, 0.15)} --out causal"
)
show.command(
    f"plft adapt {lysozymes} --model ./causal --valid {test} --general {held_out} --residues {budget} "
    "--out lysozymes-causal"
)

# %% [markdown]
# ## How sure is that?
#
# The perplexities above are means over a test file. With a score per sequence (`plft score-lm`) the bootstrap says how
# far they may be off: sequences are drawn anew a thousand times. For masked models the quick estimate `one-pass` is
# used. It stands for hiding every residue in turn, which is harder than the training objective above, where a tenth of
# the residues to be guessed are shown: compare it with itself only. Copies of training sequences are taken out by hand.

# %%
seen = {each.sequence for each in read_records(str(lysozymes), labelled=False)}
unseen = [each.sequence for each in read_records(str(test), labelled=False) if each.sequence not in seen]
unseen = sorted(set(unseen))[:: max(1, len(set(unseen)) // 300)]
data.write_fasta("unseen.fasta", unseen)
kinds = {
    "builtin:protein": "one-pass",
    "./lysozymes": "one-pass",
    "./causal": "exact",
    "./lysozymes-causal": "exact",
}
intervals = {}
for name, method in kinds.items():
    scores = f"scores-{name.strip('./').replace(':', '-')}.csv"
    show.command(f"plft score-lm {name} unseen.fasta --method {method} -o {scores}")
    intervals[name] = rows.perplexity(scores)
show.table(("model", "perplexity per residue on unseen lysozymes, 95 % interval"), intervals.items())

# %% [markdown]
# ## Using them
#
# Each folder is a `--model` for every command, for example
#
# ```bash
# plft train structure.csv --model ./lysozymes --tune head --out run
# ```
#
# Secondary structure (helix, strand, neither, for each residue) of proteins of all kinds is a task on which a general
# model should win, and on which forgetting would be seen. The backbone is frozen, so that only what the language model
# has learned counts. Compare each with the first line, random weights: minutes of pretraining lower the perplexity long
# before they help a task like this one.

# %%
structure = data.table(
    "flip_secondary_structure/sampled.csv.gz",
    "token_classification",
    {"train": 300, "valid": 60, "test": 150},
    "structure",
)
models = ["scratch:esm2-1m", "./crammed", "builtin:protein", "./lysozymes", "./causal", "./lysozymes-causal"]
lines = []
for name in models:
    config = {
        "data": {"file": structure.file},
        "model": {"name": name},
        "tuning": {"method": "head"},
        "training": {"epochs": structure.either(10, 1), "metric": "accuracy"},
        "baselines": {"run": False},
    }
    run = plft.finetune(config, out=f"structure-{name.strip('./').replace(':', '-')}")
    lines.append((name, rows.with_interval("accuracy", run.metrics["splits"]["test"]["metrics"]["accuracy"])))
show.table(("model, frozen", "three-state accuracy on test, 95 % interval"), lines)

# %% [markdown]
# ## What came out


# %%
def perplexity(folder: str, part: str = "held_out", when: str = "after") -> float:
    return json.loads(Path(folder, "metrics.json").read_text())["perplexity"][when][part]


def of_language_model(folder: str, train: str, result: str) -> dict:
    found = json.loads(Path(folder, "metrics.json").read_text())
    return {
        "train": found["data"]["sequences"],
        "test": found["data"]["held_out"],
        "model": train,
        "weights": found["parameters"],
        "trainable": found["parameters"],
        "minutes": round(found["minutes"], 1),
        "result": result,
    }


both_real = proteins.is_real and lysozymes.is_real
counting = json.loads(Path("crammed/metrics.json").read_text())["counting"]
rows.record(
    both_real,
    "Pretraining on a budget",
    "none that compares: Frey et al. 2024 (24 h on a GPU, 67 M weights) give no perplexity",
    **of_language_model(
        "crammed",
        "esm2-1m from random weights",
        f"perplexity {perplexity('crammed'):.2f}; counting alone {counting['unigram']:.2f}, {counting['bigram']:.2f}",
    ),
)
for folder, begun in {"lysozymes": "builtin:protein", "lysozymes-causal": "./causal"}.items():
    before, after = intervals[begun], intervals[f"./{folder}"]
    rows.record(
        both_real,
        f"Lysozymes (PF00959), {'causal' if 'causal' in folder else 'masked'} model adapted",
        "none in figures; Finenzyme reports that fine-tuning lowers perplexity on lysozymes",
        **of_language_model(
            folder,
            begun,
            f"perplexity per residue {before} before, {after} after; on other proteins "
            f"{perplexity(folder, 'general', 'before'):.2f} before, {perplexity(folder, 'general'):.2f} after",
        ),
    )
for name in ("./crammed", "./lysozymes"):
    rows.record(
        structure.is_real,
        f"Secondary structure, sample, head on {name}",
        "ESM2-8M frozen .753, one-hot .643 (does not compare: 9,712 training sequences)",
        **rows.of_run(f"structure-{name.strip('./')}"),
    )

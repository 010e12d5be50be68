# %% [markdown]
# # Fine-tuning a protein language model, part 2: was it worth it?
#
# [Schmirler et al. 2024](https://doi.org/10.1038/s41467-024-51844-2) fine-tuned eight protein language models on eight
# tasks, and drew one heat map: by how much each fine-tuned model beats the same model frozen. One command of plft does
# such a comparison, with every model tested on the same sequences and a correction for the number of questions asked.
#
# Here it is done small, with three models on four tasks, so that it takes minutes on two CPU cores:
#
# - `builtin:protein`, pretrained, 1.9 million weights;
# - `scratch:esm2-6x160x5`, the same shape with random weights: what of the gain is pretraining?
# - `scratch:tiny-protbert`, a tiny model of another family, ProtBert, also random.
#
# With a GPU and a network write `--models esm2-8m,esm2-150m,prott5-xl` and leave the samples away.

# %%
import json
from pathlib import Path

import data
import rows
import show

data.workplace("1b_comparison")

# %% [markdown]
# ## Four tasks
#
# One of each kind, and of each a random sample of the published split: fewer sequences than in the paper, so figures
# must not be read side by side, but the question is the same.

# %%
gb1 = data.table("schmirler_gb1/gb1.csv.gz", "scan", {"train": 800, "valid": 150, "test": 1000}, "gb1")
sites = data.table("dephos_dtl/dephos_ST.csv.gz", "seq_classification", {"train": 1000}, "phosphatase_sites")
disorder = data.table("disorder_chezod/chezod.csv.gz", "token_regression", {"train": 250}, "disorder")
structure = data.table(
    "flip_secondary_structure/sampled.csv.gz",
    "token_classification",
    {"train": 150, "valid": 30, "test": 120},
    "secondary_structure",
)

# %% [markdown]
# In GB1 only four of 265 positions differ (see [part 1](1_fine_tuning.py)), so ten residues to either side are kept.

# %%
table = data.read_csv(gb1.file)
columns = zip(*(row["sequence"] for row in table), strict=True)
differs = [at for at, column in enumerate(columns) if len(set(column)) > 1]
around = slice(max(0, differs[0] - 10), differs[-1] + 11)
data.write_csv(gb1.file, [{**row, "sequence": row["sequence"][around]} for row in table])

# %% [markdown]
# ## One command
#
# `head` trains a head on the frozen model and is what `full` is compared with. The learning rate is one for all, so
# that nobody is favoured by tuning. Give `--seeds 3`, the default, for numbers to publish; here each run is done
# once.

# %%
files = " ".join(each.file for each in (gb1, sites, disorder, structure))
settings = f"--set training.epochs={gb1.either(5, 1)} --set training.learning_rate=1e-3"
show.command(
    f"plft compare {files} --models builtin:protein,scratch:esm2-6x160x5,scratch:tiny-protbert --tunes head,full "
    f"""--seeds 1 {settings} --set data.missing="'999'" --out comparison"""
)

# %% [markdown]
# ## The heat map
#
# Each cell says by how much fine-tuning changed the score over the same model frozen; below it is the score. A dot
# marks what is significant after correction.

# %%
show.picture(Path("comparison/heatmap.svg"))

# %% [markdown]
# A random frozen model knows little and can gain most, which says little. What counts is the score itself, and whether
# a simple baseline on the same sequences (k-mers, one-hot, the frozen model with a linear one) does as well: a minus in
# the last column means that fine-tuning this model on this little data was not worth it.

# %%
results = json.loads(Path("comparison/comparison.json").read_text())
show.table(
    ("data", "model", "tuned", "score, 95 % interval", "over the best baseline"),
    [
        (
            each["data"],
            each["model"],
            each["tune"],
            rows.with_interval(results["data"][each["data"]]["metric"], each),
            "-" if each["over_baseline"]["value"] is None else f"{each['over_baseline']['value']:+.3f}",
        )
        for each in results["rows"]
    ],
)

# %% [markdown]
# The paper found that fine-tuning helped almost every model on almost every task, by a few hundredths, most on
# mutational landscapes, and that on some tasks random weights do as well as pretrained ones. Below each score stands
# the figure of the smallest ESM-2, which has four times the weights and was trained on all sequences of the split: it
# shows what there is to reach, and does not compare.

# %%
schmirler = "([Schmirler et al. 2024](https://doi.org/10.1038/s41467-024-51844-2); does not compare: all of the split)"
published = {
    "gb1": f"ESM2-8M frozen .818, full .883 {schmirler}",
    "phosphatase_sites": "none for this sample; one-hot logistic regression on all of the split .498 (own)",
    "disorder": f"ESM2-8M frozen .697, full .715 {schmirler}",
    "secondary_structure": f"ESM2-8M frozen .753, full .761 {schmirler}",
}
for name, others in published.items():
    (folder,) = Path("comparison/runs", name).glob("*builtin*/full/seed-0")
    title = f"{name.replace('_', ' ').replace('gb1', 'GB1')} (sample), full, in a comparison"
    rows.record(gb1.is_real, title, others, **rows.of_run(folder))

"""plft: fine-tune protein and DNA language models, and learn honestly whether it was worth it.

Modules, each importing only from those above it:

    errors        the one exception users see; look-up by name with "did you mean"
    alphabet      letters of protein, DNA, RNA; what to do with the others
    labels        how a label is read: tasks, missing values, classes, numbers
    formats       tables and FASTA files -> rows                                     TABLE of readers by suffix
    tables        rows -> table files, written atomically                            TABLE of writers by suffix
    ranks         which of several processes this one is
    records       rows -> records
    config        one run, as pydantic models; YAML in, YAML out
    audit         what is wrong with a set of records
    kmers         related sequences by the k-mers they share
    homology      related sequences: clusters and searches with MMseqs2, or else by k-mers
    separation    families still related across parts, moved together
    leakage       relatives of training sequences in the other splits
    scans         mutational scans: which positions differ from the reference
    splits        records -> train / valid / test                                    TABLE of splitters
    families      what each model family expects                                     TABLE
    tokens        sequences -> token ids, and which residues each token covers
    vocabularies  tokenizers built offline                                           TABLE
    scratch       architectures by name, with fresh random weights                   TABLE
    hub           fetching a model from the hub: safetensors only
    checkpoints   a model name -> config, tokenizer, backbone
    language_models  a checkpoint with its language-model head
    tasks         how a label is learned and turned into an output                   TABLE
    heads         hidden states -> outputs                                           TABLE
    tuning        which weights train                                                TABLE
    dataset       records + family + task -> token ids and targets
    batching      examples -> batches within a token budget
    memory        when it runs out: the same batch in smaller pieces
    peaks         the most memory held at a time, and giving it back
    corpus        sequence files -> tokens on disk, and the crops of an epoch
    ngrams        unigram and bigram perplexity of a corpus
    attention     attention over packed rows, for every family that can be packed
    parallel      batches without gradients, several at a time on a CPU's cores
    objectives    masked, causal, span corruption: a crop -> inputs and targets         TABLE
    features      what a frozen prefix of the network produced, kept on disk
    model         backbone + head (+ adapter) as one PreTrainedModel
    resampling    the bootstrap over sequences
    tallies       what a metric counts, for many resamples at once
    metrics       predictions + targets -> numbers with intervals                    TABLE
    paired        models on the same test sequences: over seeds, paired, corrected for many
    calibration   probabilities that mean what they say                              TABLE
    conformal     intervals and sets of classes that hold the truth at a stated rate
    novelty       inputs unlike the training sequences
    certainty     calibration, intervals and novelty of one model
    linear        ridge and logistic regression on given features
    encodings     sequences -> plain features: composition, k-mers, letters by position
    baselines     what does without a neural network, beside every run                 TABLE
    training      the transformers Trainer, set up for the above
    together      several processes that train together, on one machine
    optimizers    Muon for weight matrices, AdamW for the rest
    budget        how long pretraining lasts, and its learning rate
    pretraining   the Trainer for language models: packed crops in an endless stream
    preparation   what is read, decided and checked before weights are loaded
    keeping       training on kept features: when it pays, and for how long they last
    prediction    model + sequences -> predictions, streamed
    perplexity    how well a language model predicts sequences                       TABLE
    runfolder     what a run leaves on disk
    outputs       what a split is scored by, unrounded on disk
    held_out      what a trained model says of the parts it was not trained on
    plots         figures of the report
    heatmap       differences in colour and numbers
    findings      what a run folder says, in words and tables
    reliability   how far a run's probabilities and intervals hold, in words and plots
    worth         what fine-tuning added over the baselines, in words and a table
    mistakes      the predictions that went most wrong
    report        a run folder -> a page and a model card
    baseline_run  baselines trained beside a run and compared with it
    pipeline      the whole run, top to bottom: read this first
    evaluation    a finished run scored again, on its own or on other data
    search_space  which settings are worth searching                                 TABLE
    trials        the trials of a search, kept in SQLite: what was tried, and what to try next
    search_report  the page of a search
    search        settings tried on valid, and one run with the best of them
    planning      what a run will take, tried on a few batches
    comparison_data  the data sets of a comparison, split once
    comparison_plan  what a comparison runs, and where each run lies
    standings     what the runs of a comparison add up to
    comparison_page  its tables, heat map and page
    comparison    models x tuning methods x seeds over data sets, top to bottom
    language_preparation  what is read, decided and checked before a language model trains
    language_card  its model card
    language_run  a language model from scratch or further, top to bottom
    builtin       the demo data
    console       everything printed
    apps          the command line, which calls pipeline

Names that need torch are imported on first use, so that ``plft --help`` and ``plft check`` stay fast.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

__version__ = "0.1.0"

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of an optional kernel whenever peft is imported

_HOMES = {
    "PlftError": "errors",
    "TaskType": "labels",
    "LabelSpace": "labels",
    "RunConfig": "config",
    "make_config": "config",
    "Record": "records",
    "MLPHead": "heads",
    "LinearHead": "heads",
    "CNNHead": "heads",
    "LightAttentionHead": "heads",
    "SequenceDataModule": "dataset",
    "PLMTaskModel": "model",
    "SequenceTaskTrainer": "training",
    "ProteinTaskTrainer": "training",
    "get_compute_metrics_fn": "training",
    "Run": "pipeline",
    "load": "pipeline",
    "evaluate": "evaluation",
    "finetune": "pipeline",
    "Search": "search",
    "tune": "search",
    "compare": "comparison",
    "Comparison": "comparison",
}
_ALIASES = {"ProteinDataModule": "SequenceDataModule"}

__all__ = sorted([*_HOMES, *_ALIASES, "__version__"])


def __getattr__(name: str) -> Any:
    target = _ALIASES.get(name, name)
    if target not in _HOMES:
        raise AttributeError(f"module 'plft' has no attribute '{name}'")
    return getattr(importlib.import_module(f"plft.{_HOMES[target]}"), target)


def __dir__() -> list[str]:
    return __all__

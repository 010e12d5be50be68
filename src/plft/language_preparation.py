"""What is read, decided and checked before a language model trains: model, corpus, held-out part, sizes of batches."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from plft.alphabet import ALPHABETS
from plft.attention import can_pack, fuse, use_packing
from plft.checkpoints import Checkpoint, resolve
from plft.config import LanguageModelConfig
from plft.corpus import BLOCK, OTHER_PARTS, Corpus, Crops, Part, hold_out, tokenise, without_copies, write_fasta
from plft.errors import PlftError
from plft.homology import IDENTITY, find_mmseqs, homologous_queries
from plft.language_models import load_language_model
from plft.objectives import OBJECTIVES, LanguageModelTask, Symbols, check_symbols
from plft.optimizers import OPTIMIZERS
from plft.pretraining import Recipe
from plft.ranks import is_first, processes, rank
from plft.records import read_records
from plft.runfolder import read_json
from plft.training import choose_precision, has_accelerator
from plft.tuning import count_parameters

CROP = 512  # tokens
LONGEST_PIECE = 8  # residues in a token, mostly
CPU_BATCH, GPU_BATCH = 8192, 65536  # tokens per pass: more only take memory on a CPU, or fill a GPU
STEPS_WANTED = 3000  # a budget is divided into about so many steps, where that leaves steps large enough
SMALLEST_STEP, LARGEST_STEP = 8192, 1_000_000  # tokens; the cramming recipe takes about the latter (Frey et al. 2024)
HELD_OUT_SEED = 2**20  # crops and masks of held-out sequences are the same in every run
MOST_SEARCHED = 300_000_000  # tokens of a corpus in which homologs are searched for; more takes too long
LEAST_MINUTES = 10  # of a budget that the search may be taken from
CANDIDATES, MOST_CANDIDATES = 3, 600  # so many times as many sequences are searched as are to be held out, and at most

Say = Callable[[str], None]


@dataclass(frozen=True)
class Choices:
    """What the configuration left open, decided once and kept for resuming. Tokens are per process.

    tokens_per_second: of this machine, where a budget in minutes had it measured.  store: names the tokenised files.
    processes: how many train together; 0 in runs that were begun before that was kept.  look: held-out tokens that are
    read before and after; 0 where it is not decided yet.
    """

    crop: int
    batch_tokens: int
    accumulation: int
    learning_rate: float
    precision: str
    store: str
    tokens_per_second: float | None = None
    optimizer: str = "adamw"  # of runs that were begun before there was a choice
    processes: int = 0
    look: int = 0

    @property
    def step_tokens(self) -> int:
        """Tokens that one process reads per optimiser step, at most."""
        return self.batch_tokens * self.accumulation


@dataclass(frozen=True)
class Data:
    """A corpus and its parts.

    is_clean: nothing that is held out has a homolog in training; False where not searched.  kept: what a resumed run
    needs to hold the same out, None where files were given.
    """

    corpus: Corpus
    train: Part
    held_out: Part
    is_clean: bool
    general: Part | None
    kept: dict[str, Any] | None

    @property
    def store(self) -> str:
        """Names the content of all files."""
        parts = (self.train, self.held_out, self.general)
        return "+".join(dict.fromkeys(part.corpus.folder.name for part in parts if part is not None))

    @property
    def measured(self) -> dict[str, Part]:
        """The parts that perplexity is measured on, by name."""
        parts = {"held_out": self.held_out, "general": self.general}
        return {name: part for name, part in parts.items() if part is not None and len(part)}


@dataclass(frozen=True)
class Prepared:
    """Everything a language model's training needs."""

    config: LanguageModelConfig
    checkpoint: Checkpoint
    data: Data
    task: LanguageModelTask
    choices: Choices
    sentences: list[str]

    @cached_property
    def recipe(self) -> Recipe:
        """How crops become batches."""
        return make_recipe(self.config, self.checkpoint, self.task, self.choices.batch_tokens)

    @cached_property
    def crops(self) -> Crops:
        """The crops that are learned from."""
        return Crops(self.data.train, self.checkpoint.residue_tokenizer, self.choices.crop, self.config.seed)

    def batches(self, part: Part, most: int) -> Iterator[dict[str, Any]]:
        """Batches of about `most` tokens of a held-out part: always the same crops, masked in the same way.

        Of several processes each gets its share.
        """
        crops = Crops(part, self.checkpoint.residue_tokenizer, self.choices.crop, HELD_OUT_SEED)
        n_crops = min(crops.n, max(1, int(most * crops.n / max(1, part.n_tokens))))
        recipe = replace(self.recipe, measures=True)
        for rows in islice(recipe.cut(crops, n_crops), rank(), None, processes()):
            yield on_device(recipe.batch(crops, rows))


def prepare(config: LanguageModelConfig, out: Path, say: Say, started: float, resume: bool) -> Prepared:
    """Read the files, load the model and decide what the configuration leaves open; nothing is written to `out`.

    out: where a resumed run finds what was decided.  started: when the budget began (`time.monotonic`).
    """
    sentences: list[str] = []

    def tell(sentence: str) -> None:
        sentences.append(sentence)
        say(sentence)

    if processes() > 1:
        PartialState(cpu=not has_accelerator())  # from here on the processes can talk to each other
    checkpoint = find_model(config)
    data = read_data(config, checkpoint, kept_file(out / "held_out.json", resume), tell)
    task = build_task(config, checkpoint, tell)
    choices = choose(config, checkpoint, data, task, kept_file(out / "choices.json", resume), started)
    trainable, total = count_parameters(task)
    tell(
        f"{checkpoint.lasting_name}: {trainable:,} of {total:,} weights learn "
        f"{OBJECTIVES[checkpoint.family.objective].title}; crops of {choices.crop} tokens, "
        f"{choices.step_tokens * processes():,} tokens a step, learning rate {choices.learning_rate:.2g} "
        f"with {OPTIMIZERS[choices.optimizer]}, {choices.precision}"
    )
    return Prepared(config, checkpoint, data, task, choices, sentences)


def kept_file(file: Path, resume: bool) -> dict[str, Any] | None:
    """What an interrupted run left in a file, None where there is nothing to go on from."""
    return read_json(file) if resume and file.is_file() else None


def find_model(config: LanguageModelConfig) -> Checkpoint:
    """The model to begin with; the tokenizer of a scratch model that learns its pieces is trained on the files."""
    records = (record for file in config.files for record in read_records(Path(file), labelled=False))
    sequences = (record.sequence for record in records if record.split not in OTHER_PARTS)
    checkpoint = resolve(
        config.model,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        sequences=sequences if config.model.startswith("scratch:") else None,
        seed=config.seed,
    )
    check_symbols(checkpoint, Symbols.of(checkpoint))
    _refuse_what_has_no_effect(config, checkpoint)
    return checkpoint


def _refuse_what_has_no_effect(config: LanguageModelConfig, checkpoint: Checkpoint) -> None:
    """Settings that this model cannot follow."""
    usual = LanguageModelConfig.model_fields["rate"].default
    if checkpoint.family.objective == "causal" and config.rate != usual:
        raise PlftError(f"--rate {config.rate:g} has no effect: {checkpoint.name} predicts every token. Leave it out.")
    if config.method == "lora" and checkpoint.is_scratch:
        raise PlftError(
            f"--method lora changes learned weights slightly, and {checkpoint.name} has learned none. Leave it out."
        )


# -- data --------------------------------------------------------------------------------------------------------------


def read_data(config: LanguageModelConfig, checkpoint: Checkpoint, kept: dict[str, Any] | None, say: Say) -> Data:
    """Tokenise the files, hold a part out, and leave exact copies of what is learned out of it.

    kept: what an interrupted run held out, which is held out again.
    """
    tokenizer, is_dna = checkpoint.residue_tokenizer, checkpoint.family.alphabet == "dna"
    if config.both_strands and not is_dna:
        raise PlftError("--both-strands is for DNA, and this model reads proteins. Leave it out.")
    both_strands = is_dna if config.both_strands is None else config.both_strands
    block = _block(config, checkpoint)

    def read(files: Sequence[str], both: bool = False, to_learn: bool = False) -> Corpus:
        paths = [Path(file) for file in files]
        return tokenise(paths, tokenizer, both_strands=both, block=block, to_learn=to_learn)

    corpus = read(config.files, both_strands, to_learn=True)
    facts = corpus.facts
    replaced = f"; {facts.unknown:,} unknown letters replaced" if facts.unknown else ""
    duplicates = f"{facts.duplicates:,} exact copies left out"
    say(f"{facts.sequences:,} sequences, {facts.residues:,} residues; {duplicates}{replaced}")
    if facts.other_parts:
        say(f"{facts.other_parts:,} sequences that the files mark as valid or test are left out")
    general = Part(read(config.general)) if config.general else None
    if config.valid:
        held_out, copies = without_copies(read(config.valid), corpus)
        none_left = "" if len(held_out) else ": no perplexity will be measured"
        twice = f" and {held_out.corpus.facts.duplicates:,} of one another" if held_out.corpus.facts.duplicates else ""
        left_out = f"{copies:,} exact copies of training sequences{twice} left out of them{none_left}"
        say(f"{len(held_out):,} held-out sequences or stretches; {left_out}")
        return Data(corpus, Part(corpus), held_out, False, general, None)
    kept = kept or agreed(lambda: _hold_out(config, checkpoint, corpus))
    entries = np.array(sorted(kept["entries"]), dtype=np.int64)
    held_out = Part(corpus, entries)
    say(f"{held_out.n_stretches:,} of {Part(corpus).n_stretches:,} stretches held out, {kept['how']}")
    return Data(corpus, Part(corpus, without=entries), held_out, kept["clean"], general, kept)


def _crop(config: LanguageModelConfig, checkpoint: Checkpoint) -> int:
    """Tokens of a crop, at most."""
    return min(config.crop or CROP, checkpoint.family.max_tokens or config.crop or CROP)


def _block(config: LanguageModelConfig, checkpoint: Checkpoint) -> int:
    """Residues of a stretch in the store: a crop fits."""
    letters = _crop(config, checkpoint) * (1 if checkpoint.residue_tokenizer.is_letterwise else LONGEST_PIECE)
    return BLOCK << max(0, math.ceil(math.log2(letters / BLOCK)))


def agreed(decide: Callable[[], Any]) -> Any:
    """What the first process decides, on all of them."""
    decided = decide() if is_first() else None
    return broadcast_object_list([decided])[0] if processes() > 1 else decided


def _hold_out(config: LanguageModelConfig, checkpoint: Checkpoint, corpus: Corpus) -> dict[str, Any]:
    """Entries to hold out, whether they have no homologs in the rest (`clean`), and how they were chosen."""
    if not config.held_out_share:
        return {"entries": [], "clean": False, "how": "as asked"}
    by_chance = hold_out(corpus, config.held_out_share, seed=config.seed).tolist()
    if not by_chance:
        return {"entries": [], "clean": False, "how": "as one sequence alone cannot be divided"}
    reasons = {
        "MMseqs2 is not installed": find_mmseqs() is None,
        "tokens of this model are no single letters": not checkpoint.residue_tokenizer.is_letterwise,
        "the corpus is large": corpus.facts.tokens > MOST_SEARCHED,
        "the search would take too much of the budget": (config.minutes or math.inf) < LEAST_MINUTES,
    }
    if why := [reason for reason, holds in reasons.items() if holds]:
        how = f"by chance, homologs of training sequences among them ({why[0]})"
        return {"entries": by_chance, "clean": False, "how": how}
    share = min(CANDIDATES * config.held_out_share, 0.5)
    candidates = hold_out(corpus, share, MOST_CANDIDATES, config.seed).tolist()
    rest = Part(corpus, without=np.array(sorted(candidates), dtype=np.int64))
    chosen = _unrelated(checkpoint, corpus, candidates, rest)[: len(by_chance)]
    gone_back = set(candidates) - set(chosen)
    while gone_back:  # what goes back to training may be related to others that were to be held out
        rest = Part(corpus, np.array(sorted(gone_back), dtype=np.int64))
        kept = _unrelated(checkpoint, corpus, chosen, rest)
        chosen, gone_back = kept, set(chosen) - set(kept)
    if not chosen:
        return {"entries": by_chance, "clean": False, "how": "by chance: every one searched has a homolog in the rest"}
    identity = IDENTITY[checkpoint.family.alphabet]
    how = f"none with a homolog in the rest ({identity:.0%} identity over half its length, MMseqs2)"
    return {"entries": chosen, "clean": True, "how": how}


def _unrelated(checkpoint: Checkpoint, corpus: Corpus, asked: list[int], rest: Part) -> list[int]:
    """The asked entries, in their order, of which neither strand aligns to any of the rest."""
    if not asked or not len(rest):
        return asked
    letters = checkpoint.residue_tokenizer.letters
    spelled = [letters[corpus.read(entry, 0, int(corpus.lengths[entry]))].tobytes().decode() for entry in asked]
    with tempfile.TemporaryDirectory() as folder:
        write_fasta(rest, letters, Path(folder) / "rest.fasta")
        related = homologous_queries(spelled, Path(folder) / "rest.fasta", ALPHABETS[checkpoint.family.alphabet])
    stretches = [int(corpus.hashes[entry]) >> 1 for entry in asked]
    bad = {stretch for stretch, is_related in zip(stretches, related, strict=True) if is_related}
    return [entry for entry, stretch in zip(asked, stretches, strict=True) if stretch not in bad]


# -- the model ---------------------------------------------------------------------------------------------------------


def build_task(config: LanguageModelConfig, checkpoint: Checkpoint, say: Say) -> LanguageModelTask:
    """The model with its head, ready to train: packed where it can be, with LoRA or without biases where asked."""
    model: Any = load_language_model(checkpoint)
    for name, parameter in model.named_parameters():
        if "contact_head" in name:  # ESM's; it takes no part in the objective
            parameter.requires_grad = False
    _choose_biases(config, checkpoint, model)
    fuse(model)
    if can_pack(model):
        use_packing(model)
    else:
        say(f"{checkpoint.family.title} cannot be packed: batches are padded, sorted by length")
    if config.method == "lora":
        from peft import LoraConfig, get_peft_model

        targets = list(checkpoint.family.lora_targets) or "all-linear"
        model = get_peft_model(model, LoraConfig(r=config.rank, lora_alpha=2 * config.rank, target_modules=targets))
    return LanguageModelTask(model)


def _choose_biases(config: LanguageModelConfig, checkpoint: Checkpoint, model: nn.Module) -> None:
    """Keep the biases of all linear layers at zero where they are not wanted (the cramming recipe leaves them out).

    Of a model to go on from they are not if all are zero.
    """
    biases = [each.bias for each in model.modules() if isinstance(each, nn.Linear | Conv1D) and each.bias is not None]
    if not config.biases and not biases:
        raise PlftError(f"--no-biases has no effect: the linear layers of {checkpoint.name} have none. Leave it out.")
    has_none = not checkpoint.is_scratch and not any(each.any() for each in biases)
    if config.biases and not has_none:
        return
    if not checkpoint.is_scratch and not has_none:
        raise PlftError(f"{checkpoint.name} has learned with biases and needs them. Leave out biases=false.")
    for bias in biases:
        nn.init.zeros_(bias)
        bias.requires_grad = False


def make_recipe(
    config: LanguageModelConfig, checkpoint: Checkpoint, task: LanguageModelTask, batch_tokens: int
) -> Recipe:
    """How crops become batches of `batch_tokens` for this model."""
    return Recipe(
        objective=OBJECTIVES[checkpoint.family.objective],
        symbols=Symbols.of(checkpoint),
        rate=config.rate,
        budget=batch_tokens,
        pad_id=None if can_pack(task.plain) else checkpoint.residue_tokenizer.pad_token_id,
    )


# -- sizes -------------------------------------------------------------------------------------------------------------


def choose(
    config: LanguageModelConfig,
    checkpoint: Checkpoint,
    data: Data,
    task: LanguageModelTask,
    kept: dict[str, Any] | None,
    started: float,
) -> Choices:
    """Decide what was left open. kept: what an interrupted run decided, which holds as long as the data is the same."""
    if kept is not None:
        choices = Choices(**kept)
        if choices.store != data.store:
            raise PlftError(
                "The files have changed since this run began. Restore them, or begin anew with --overwrite."
            )
        if choices.processes not in (0, processes()):
            raise PlftError(
                f"This run was begun by {choices.processes} processes and cannot be resumed by {processes()}. "
                "Start as many again."
            )
        return choices
    precision = choose_precision(config.precision, checkpoint.family)[0]
    crop = _crop(config, checkpoint)
    fitting = "muon" if checkpoint.is_scratch else "adamw"
    choices = Choices(
        crop=crop,
        batch_tokens=config.batch_residues or max(crop, _batch_tokens(checkpoint)),
        accumulation=1,
        learning_rate=config.learning_rate or _learning_rate(config, checkpoint),
        precision=precision,
        store=data.store,
        optimizer=fitting if config.optimizer == "auto" else config.optimizer,
        processes=processes(),
    )
    choices = agreed(lambda: choices)  # free memory and clocks differ from process to process
    if choices.batch_tokens < choices.crop:
        raise PlftError(
            f"A batch of {choices.batch_tokens} tokens cannot hold a crop of {choices.crop}. "
            "Raise --batch-residues, or lower --crop."
        )
    if config.minutes is not None:
        speed = _tokens_per_second(config, checkpoint, data, task, choices)
        choices = replace(choices, tokens_per_second=agreed(lambda: speed))
    wanted = agreed(lambda: config.step_residues or _step_tokens(config, choices, started))
    return replace(choices, accumulation=max(1, round(wanted / choices.batch_tokens / processes())))


def _batch_tokens(checkpoint: Checkpoint) -> int:
    """Tokens per pass: what a CPU's cache holds, or what fills half of a GPU."""
    if not torch.cuda.is_available():
        return GPU_BATCH if has_accelerator() else CPU_BATCH
    return int(min(GPU_BATCH, torch.cuda.mem_get_info()[0] / 2 / (4 * _numbers_per_token(checkpoint))))


def worker_bytes(config: LanguageModelConfig) -> int:
    """Memory that a process on a CPU takes for the model of a configuration, in bytes; 0 where that cannot be said.

    A weight takes 16 bytes with its gradient and the optimiser's two averages.
    """
    try:
        checkpoint = resolve(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
        model = checkpoint.without_weights()
    except PlftError:  # said when the model is read in earnest
        return 0
    if model is None:
        return 0
    weights = sum(each.numel() for each in model.parameters())
    return 2**29 + 16 * weights + 4 * _numbers_per_token(checkpoint) * (config.batch_residues or CPU_BATCH)


def _numbers_per_token(checkpoint: Checkpoint) -> int:
    """Kept for the backward pass: some 34 per unit of width in every block (Korthikanti et al. 2022), and logits."""
    config = checkpoint.config
    return 34 * config.num_hidden_layers * config.hidden_size + 3 * config.vocab_size


def _learning_rate(config: LanguageModelConfig, checkpoint: Checkpoint) -> float:
    """Falls with the root of the width: 2e-3 at 128, 4e-4 near 3000. All weights of a trained model take half."""
    peak = 2e-3 * math.sqrt(128 / checkpoint.width)
    return peak if checkpoint.is_scratch or config.method == "lora" else peak / 2


def _step_tokens(config: LanguageModelConfig, choices: Choices, started: float) -> int:
    """Tokens per step, over all processes, such that the budget gives about `STEPS_WANTED`."""
    total = config.residues or (config.steps or 0) * SMALLEST_STEP
    if config.minutes is not None:
        left = 60 * config.minutes - (time.monotonic() - started)
        total = int((choices.tokens_per_second or 0) * max(0.0, left) * processes())
    return min(LARGEST_STEP, max(SMALLEST_STEP, total // STEPS_WANTED))


def _tokens_per_second(
    config: LanguageModelConfig, checkpoint: Checkpoint, data: Data, task: LanguageModelTask, choices: Choices
) -> float:
    """Speed of three forward and backward passes, after one that is not counted."""
    recipe = make_recipe(config, checkpoint, task, choices.batch_tokens)
    crops = Crops(data.train, checkpoint.residue_tokenizer, choices.crop, config.seed)
    task.to(device())
    tokens, began = 0, 0.0
    for number, rows in enumerate(islice(recipe.cut(crops), 4)):
        began = time.monotonic() if number == 1 else began
        batch = recipe.batch(crops, rows)
        tokens += batch["input_ids"].numel() if number else 0
        with autocast(choices.precision):
            loss = task(**on_device(batch))
        loss.backward()
    task.zero_grad(set_to_none=True)
    return tokens / (time.monotonic() - began)


# -- the machine -------------------------------------------------------------------------------------------------------


def device() -> torch.device:
    """The accelerator, or the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu") if has_accelerator() else torch.device("cpu")


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with its tensors moved to the device."""
    return {name: value.to(device()) if isinstance(value, Tensor) else value for name, value in batch.items()}


def autocast(precision: str) -> torch.autocast:
    """Mixed precision as training uses it."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device().type, dtype, enabled=dtype is not None)

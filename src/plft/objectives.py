"""What a language model learns from a crop: masked tokens, the next token, or single tokens cut out (T5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from plft.alphabet import ALPHABETS
from plft.attention import Packing, run_packed
from plft.checkpoints import Checkpoint
from plft.errors import PlftError

NOTHING = -100  # target of a token that is not predicted
SENTINELS = 100  # T5 has <extra_id_0> to <extra_id_99>


@dataclass(frozen=True)
class Symbols:
    """The token ids that corruption works with.

    is_special: (vocabulary,) bool, never masked and never put in: what stands around a sequence, and what says nothing.
    says_nothing: (vocabulary,) bool, never predicted: the unknown token, and pieces with X or N in them.
    letters: ids that a token may be replaced by.
    mask: the mask token's id, None without one.  sentinels: ids that stand for a token cut out, in their order.
    run: consecutive tokens that are masked together (k for overlapping k-mers, which would give each other away).
    start: what a decoder reads first.
    """

    is_special: np.ndarray
    says_nothing: np.ndarray
    letters: np.ndarray
    mask: int | None
    sentinels: np.ndarray
    run: int = 1
    start: int = 0

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Symbols:
        """From a checkpoint's tokenizer. Letters are the tokens that ordinary residues become."""
        tokenizer = checkpoint.tokenizer
        vocabulary = tokenizer.get_vocab()
        says_nothing = np.zeros(max(len(tokenizer), max(vocabulary.values()) + 1), dtype=bool)
        unknown = ALPHABETS[checkpoint.family.alphabet].unknown
        says_nothing[[id for token, id in vocabulary.items() if unknown in token and _bare(token).isalpha()]] = True
        if tokenizer.unk_token_id not in (None, tokenizer.eos_token_id):  # GPT-2 has one token for both
            says_nothing[tokenizer.unk_token_id] = True
        is_special = says_nothing.copy()
        before, after = checkpoint.residue_tokenizer.around
        is_special[[*tokenizer.all_special_ids, *before, *after]] = True
        sentinels = [vocabulary[name] for i in range(SENTINELS) if (name := f"<extra_id_{i}>") in vocabulary]
        is_special[sentinels] = True
        unusual = {id for token, id in vocabulary.items() if not _is_word(token, checkpoint.family.alphabet)}
        letters = np.array(sorted(set(vocabulary.values()) - unusual - set(np.flatnonzero(is_special).tolist())))
        run = checkpoint.family.kmer or 1 if checkpoint.family.spelling == "kmers" else 1
        start = getattr(checkpoint.config, "decoder_start_token_id", None)
        start = checkpoint.residue_tokenizer.pad_token_id if start is None else start
        return cls(
            is_special, says_nothing, letters, tokenizer.mask_token_id, np.array(sentinels, dtype=np.int64), run, start
        )


def _bare(token: str) -> str:
    """A token without the signs that vocabularies write for spaces and line breaks."""
    return token.replace("▁", "").replace("Ġ", "").replace("Ċ", "")


def _is_word(token: str, alphabet: str) -> bool:
    ordinary = "ACGT" if alphabet == "dna" else "ACDEFGHIKLMNPQRSTVWY"
    return bool(_bare(token)) and all(letter in ordinary for letter in _bare(token))


@dataclass(frozen=True)
class Corrupted:
    """One crop as the model gets it. ids: (tokens,).  targets: (tokens,) with `NOTHING` where none is predicted.

    eligible: how many tokens could have been predicted.  decoder: (ids, targets) of a decoder that answers, for span
    corruption; targets is then empty.
    """

    ids: np.ndarray
    targets: np.ndarray
    eligible: int
    decoder: tuple[np.ndarray, np.ndarray] | None = None


Corrupt = Callable[[np.ndarray, Symbols, float, np.random.Generator], Corrupted]


def mask_tokens(tokens: np.ndarray, symbols: Symbols, rate: float, random: np.random.Generator) -> Corrupted:
    """Choose a share of the tokens; 80 % become the mask, 10 % another letter, 10 % stay (Devlin et al. 2019).

    Special tokens are never chosen. tokens: (tokens,) ids.  rate: share of the others that is chosen, on average.
    """
    can = ~symbols.is_special[tokens]
    chosen = can & _runs(len(tokens), rate, symbols.run, random)
    how = random.random(len(tokens))
    ids = tokens.copy()
    ids[chosen & (how < 0.8)] = symbols.mask
    swapped = chosen & (how >= 0.9)
    ids[swapped] = random.choice(symbols.letters, int(swapped.sum()))
    return Corrupted(ids, np.where(chosen, tokens, NOTHING), int(can.sum()))


def _runs(n: int, rate: float, run: int, random: np.random.Generator) -> np.ndarray:
    """Which of n tokens are chosen, when every choice takes `run` tokens from there: each with probability `rate`.

    A run may begin before the first token or end after the last one.
    """
    begins = random.random(n + run - 1) < 1 - (1 - rate) ** (1 / run)
    windows: np.ndarray = np.lib.stride_tricks.sliding_window_view(begins, run)
    return np.any(windows, axis=-1)


def next_token(tokens: np.ndarray, symbols: Symbols, rate: float, random: np.random.Generator) -> Corrupted:
    """Every token predicts the one after it, unless that says nothing; nothing is corrupted."""
    targets = np.append(np.where(symbols.says_nothing[tokens[1:]], NOTHING, tokens[1:]), NOTHING)
    return Corrupted(tokens, targets, int((targets != NOTHING).sum()))


def cut_out(tokens: np.ndarray, symbols: Symbols, rate: float, random: np.random.Generator) -> Corrupted:
    """Replace a share of the tokens by sentinels, one each, which the decoder answers (Raffel et al. 2020, span 1).

    The decoder reads its start token, then sentinel and answer in turn, and predicts the answers only. At most as many
    tokens are cut out as there are sentinels.
    """
    can = ~symbols.is_special[tokens]
    chosen = np.flatnonzero(can & (random.random(len(tokens)) < rate))
    if len(chosen) > len(symbols.sentinels):
        chosen = np.sort(random.choice(chosen, len(symbols.sentinels), replace=False))
    ids, sentinels = tokens.copy(), symbols.sentinels[: len(chosen)]
    ids[chosen] = sentinels
    said = np.stack([sentinels, tokens[chosen]], axis=1).reshape(-1)
    asked = np.concatenate([[symbols.start], said])[: 2 * len(chosen)]  # nothing follows the last answer
    answer = np.full(len(asked), NOTHING)
    answer[1::2] = tokens[chosen]
    return Corrupted(ids, np.empty(0, np.int64), int(can.sum()), (asked, answer))


@dataclass(frozen=True)
class Objective:
    """What is predicted. title: for sentences."""

    title: str
    corrupt: Corrupt


OBJECTIVES: dict[str, Objective] = {
    "masked": Objective("masked tokens", mask_tokens),
    "causal": Objective("the next token", next_token),
    "span": Objective("single tokens cut out", cut_out),
}


def check_symbols(checkpoint: Checkpoint, symbols: Symbols) -> None:
    """Refuse a tokenizer that has no symbol for what the objective leaves out."""
    objective = checkpoint.family.objective
    if objective == "masked" and symbols.mask is None:
        raise PlftError(f"{checkpoint.name}: its tokenizer has no mask token, so masked tokens cannot be learned.")
    if objective == "span" and not len(symbols.sentinels):
        raise PlftError(f"{checkpoint.name}: its tokenizer has no <extra_id_0> to <extra_id_99> for span corruption.")


# -- batches -----------------------------------------------------------------------------------------------------------


def pack(crops: Sequence[Corrupted]) -> dict[str, Any]:
    """Lay crops end to end, longest first: input_ids, labels (tokens,) and the packing. Nothing is padded."""
    crops = sorted(crops, key=lambda each: -len(each.ids))
    return {
        "input_ids": torch.from_numpy(np.concatenate([each.ids for each in crops])),
        "labels": torch.from_numpy(np.concatenate([each.targets for each in crops])),
        "packing": Packing.of([len(each.ids) for each in crops]),
    }


def pad(crops: Sequence[Corrupted], pad_id: int) -> dict[str, Any]:
    """Lay crops below one another, for models that cannot be packed; for T5 with a decoder's inputs."""
    ids = _stack([each.ids for each in crops], pad_id)
    batch = {"input_ids": ids, "attention_mask": _stack([np.ones_like(each.ids) for each in crops], 0)}
    decoders = [each.decoder for each in crops if each.decoder is not None]
    if not decoders:
        return batch | {"labels": _stack([each.targets for each in crops], NOTHING)}
    return batch | {
        "decoder_input_ids": _stack([asked for asked, _ in decoders], pad_id),
        "labels": _stack([answer for _, answer in decoders], NOTHING),
    }


def _stack(rows: Sequence[np.ndarray], fill: int) -> Tensor:
    result = np.full((len(rows), max(1, *(len(row) for row in rows))), fill, dtype=np.int64)
    for stacked, row in zip(result, rows, strict=True):
        stacked[: len(row)] = row
    return torch.from_numpy(result)


# -- loss --------------------------------------------------------------------------------------------------------------

HEADS: dict[str, Callable[[Any], Callable[[Tensor], Tensor]]] = {
    "esm": lambda model: model.lm_head,
    "esmc": lambda model: model.lm_head,
    "bert": lambda model: model.cls,
    "electra": lambda model: lambda hidden: model.generator_lm_head(model.generator_predictions(hidden)),
    "mixtral": lambda model: model.lm_head,
    "mistral": lambda model: model.lm_head,
    "llama": lambda model: model.lm_head,
    "gpt2": lambda model: model.lm_head,
}


@contextmanager
def seen_only(layer: nn.Module, where: Tensor) -> Iterator[None]:
    """Let a layer see these positions only: of (batch, tokens, width) it gets (n, width). where: (batch, tokens)."""
    hook = layer.register_forward_pre_hook(lambda _, inputs: (inputs[0][where],))
    try:
        yield
    finally:
        hook.remove()


class LanguageModelTask(nn.Module):
    """A language model that returns the summed loss of a batch, over predicted positions only.

    model: with its language-model head (`language_models.load_language_model`), in peft's wrapper or not.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def config(self) -> Any:
        """The language model's configuration."""
        return self.model.config

    @property
    def plain(self) -> PreTrainedModel:
        """The transformers model, out of peft's wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recompute activations in the backward pass; the Trainer calls this."""
        self.model.activation_checkpointing_enable(**options)
        if self.plain is not self.model:  # LoRA: the input of the first block needs a gradient for it to be recomputed
            self.plain.enable_input_require_grads()

    def forward(self, input_ids: Tensor, labels: Tensor, **others: Any) -> Tensor:
        """Sum of -log p over the predicted positions, in nats: (). others: the rest of a batch of `pack` or `pad`."""
        logits, targets = self.predicted(input_ids, labels, **others)
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def predicted(self, input_ids: Tensor, labels: Tensor, **others: Any) -> tuple[Tensor, Tensor]:
        """Logits (predicted, vocabulary) and targets (predicted,); the head sees no other position."""
        model, where = self.plain, labels != NOTHING
        for counted in ("eligible", "tokens"):  # about the batch, not for the model
            others.pop(counted, None)
        if "decoder_input_ids" in others:
            with seen_only(model.get_output_embeddings(), where):
                return model(input_ids=input_ids, **others).logits, labels[where]
        if model.config.model_type not in HEADS:
            return model(input_ids=input_ids, **others).logits[where], labels[where]
        base = model.base_model
        packing = others.pop("packing", None)
        # [0]: code of a model's own may return a plain tuple
        hidden = run_packed(base, input_ids, packing) if packing else base(input_ids=input_ids, **others)[0]
        return HEADS[model.config.model_type](model)(hidden[where]), labels[where]


def perplexity(loss: float) -> float:
    """exp of a mean loss in nats; as high as a number can be, where a model has gone astray."""
    return math.exp(min(loss, 700.0))

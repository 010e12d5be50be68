"""Architectures by name, for fresh random weights: the published shapes, small ones, and a tiny one per family."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    BertConfig,
    ElectraConfig,
    EsmcConfig,
    EsmConfig,
    GPT2Config,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    T5Config,
)

from plft.errors import PlftError, unknown_name
from plft.vocabularies import scratch_tokenizer

Shape = Callable[[PreTrainedTokenizerBase], PreTrainedConfig]


@dataclass(frozen=True)
class Architecture:
    """A model to build from nothing.

    family: the row of the family table it belongs to.  shape: its configuration, given its tokenizer.
    tokenizer: options of `scratch_tokenizer` (size of a learned vocabulary, letters per k-mer).
    """

    family: str
    shape: Shape
    tokenizer: dict[str, int] = field(default_factory=dict)

    def build(self, sequences: Iterable[str] | None = None) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
        """Return tokenizer and configuration; `sequences` train the tokenizer where the family learns its pieces."""
        tokenizer = scratch_tokenizer(self.family, sequences, **self.tokenizer)
        return tokenizer, self.shape(tokenizer)


def architecture(name: str) -> Architecture:
    """Return a row of :data:`ARCHITECTURES`, or build the one that a name spells out: ``esm2-6x192x3``.

    Such a name is a key of :data:`ANY_SHAPE`, then layers, width and heads; the feed-forward layers are four times as
    wide. A name that is neither, and a width that the heads cannot share, are a PlftError.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    spelled = _SPELLED_OUT.fullmatch(name)
    if spelled is None:
        named = [each for each in ARCHITECTURES if not each.startswith("tiny-")]
        raise unknown_name("scratch model", name, [*named, *(f"{kind}-LAYERSxWIDTHxHEADS" for kind in ANY_SHAPE)])
    return _spelled_out(spelled["kind"], *(int(spelled[part]) for part in ("layers", "width", "heads")))


def _spelled_out(kind: str, layers: int, width: int, heads: int) -> Architecture:
    """Rotary positions turn pairs of numbers, so every head is an even number wide."""
    if not layers or not heads or not width or width % (2 * heads):
        unit = 2 * max(heads, 1)
        nearest = f"{kind}-{max(layers, 1)}x{max(round(width / unit), 1) * unit}x{max(heads, 1)}"
        raise PlftError(
            f"Scratch model '{kind}-{layers}x{width}x{heads}' cannot be built: layers, width and heads must be at "
            f"least 1, and the width a multiple of twice the heads. Try '{nearest}'."
        )
    return Architecture(ANY_SHAPE[kind], _esm(layers, width, heads))


# -- shapes ------------------------------------------------------------------------------------------------------------


def _esm(layers: int, width: int, heads: int, feed_forward: int = 0, **others: Any) -> Shape:
    """ESM-2 unless `others` says otherwise: rotary positions, embeddings rescaled for masked tokens, no dropout."""

    def shape(tokenizer: PreTrainedTokenizerBase) -> EsmConfig:
        settings = {
            "position_embedding_type": "rotary",
            "emb_layer_norm_before": False,
            "token_dropout": True,
            "max_position_embeddings": 1026,
            "eos_token_id": tokenizer.eos_token_id,
        }
        return EsmConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            mask_token_id=tokenizer.mask_token_id,
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=heads,
            intermediate_size=feed_forward or 4 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-5,
            **{**settings, **others},
        )

    return shape


_ESM1B: dict[str, Any] = {"position_embedding_type": "absolute", "emb_layer_norm_before": True}
_NUCLEOTIDE_TRANSFORMER: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "token_dropout": False,
    "max_position_embeddings": 1002,  # 1000 tokens, counted from the padding id + 1
}


def _esmc(layers: int, width: int, heads: int, feed_forward: int, rows: int = 64) -> Shape:
    def shape(tokenizer: PreTrainedTokenizerBase) -> EsmcConfig:
        return EsmcConfig(
            vocab_size=rows,
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=heads,
            intermediate_size=feed_forward,
        )

    return shape


def _bert(layers: int, width: int, heads: int, feed_forward: int, positions: int, dropout: float = 0.0) -> Shape:
    def shape(tokenizer: PreTrainedTokenizerBase) -> BertConfig:
        return BertConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=heads,
            intermediate_size=feed_forward,
            max_position_embeddings=positions,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )

    return shape


def _t5(layers: int, width: int, heads: int, head_width: int, feed_forward: int, **others: Any) -> Shape:
    def shape(tokenizer: PreTrainedTokenizerBase) -> T5Config:
        return T5Config(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,  # as in the published checkpoints
            num_layers=layers,
            d_model=width,
            num_heads=heads,
            d_kv=head_width,
            d_ff=feed_forward,
            **others,
        )

    return shape


_ANKH = {
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 64,
    "dropout_rate": 0.0,
    "tie_word_embeddings": False,
}


def _mixtral(layers: int, width: int, heads: int, experts: int, positions: int) -> Shape:
    """Mistral-DNA: experts as wide as the model, and one of them per token."""

    def shape(tokenizer: PreTrainedTokenizerBase) -> MixtralConfig:
        return MixtralConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
            num_hidden_layers=layers,
            hidden_size=width,
            intermediate_size=width,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            num_local_experts=experts,
            num_experts_per_tok=1,
            max_position_embeddings=positions,
            router_aux_loss_coef=0.02,
        )

    return shape


def _gpt2(layers: int, width: int, heads: int, dropout: float = 0.1) -> Shape:
    def shape(tokenizer: PreTrainedTokenizerBase) -> GPT2Config:
        return GPT2Config(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            n_layer=layers,
            n_embd=width,
            n_head=heads,
            n_positions=1024,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
        )

    return shape


def _electra(layers: int, width: int, heads: int) -> Shape:
    """A model type that no family row describes, for the safe defaults."""

    def shape(tokenizer: PreTrainedTokenizerBase) -> ElectraConfig:
        return ElectraConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            num_hidden_layers=layers,
            hidden_size=width,
            embedding_size=width,
            num_attention_heads=heads,
            intermediate_size=2 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )

    return shape


# -- names -------------------------------------------------------------------------------------------------------------

_PROTT5_XL = (24, 1024, 32, 128, 16384)

# kinds of names that spell out their shape, and the family they belong to
ANY_SHAPE = {"esm2": "esm2", "dna": "esm-dna"}
_SPELLED_OUT = re.compile(rf"(?P<kind>{'|'.join(ANY_SHAPE)})-(?P<layers>\d+)x(?P<width>\d+)x(?P<heads>\d+)")

ARCHITECTURES: dict[str, Architecture] = {
    "esm2-0.2m": Architecture("esm2", _esm(4, 64, 4)),
    "esm2-1m": Architecture("esm2", _esm(5, 128, 4)),
    "esm2-3m": Architecture("esm2", _esm(7, 192, 6)),
    "esm2-8m": Architecture("esm2", _esm(6, 320, 20)),
    "esm2-35m": Architecture("esm2", _esm(12, 480, 20)),
    "esm2-150m": Architecture("esm2", _esm(30, 640, 20)),
    "esm2-650m": Architecture("esm2", _esm(33, 1280, 20)),
    "esm2-3b": Architecture("esm2", _esm(36, 2560, 40)),
    "esm2-15b": Architecture("esm2", _esm(48, 5120, 40)),
    "esm1b": Architecture("esm1b", _esm(33, 1280, 20, **_ESM1B)),
    "esmc-300m": Architecture("esmc", _esmc(30, 960, 15, 2560)),
    "esmc-600m": Architecture("esmc", _esmc(36, 1152, 18, 3072)),
    "protbert": Architecture("protbert", _bert(30, 1024, 16, 4096, positions=40000)),
    "prott5-xl": Architecture("prott5", _t5(*_PROTT5_XL)),
    "prostt5": Architecture("prostt5", _t5(*_PROTT5_XL)),
    # sizes with the decoder, which pretraining needs
    "t5-1m": Architecture("prott5", _t5(4, 96, 3, 32, 384, dropout_rate=0.0)),
    "t5-8m": Architecture("prott5", _t5(8, 192, 3, 64, 768, dropout_rate=0.0)),
    "ankh-base": Architecture("ankh", _t5(48, 768, 12, 64, 3072, **_ANKH)),
    "ankh-large": Architecture("ankh", _t5(48, 1536, 16, 64, 3840, **_ANKH)),
    "protgpt2": Architecture("protgpt2", _gpt2(36, 1280, 20), {"size": 50257}),
    "protgpt2-1m": Architecture("protgpt2", _gpt2(4, 128, 2, dropout=0.0), {"size": 1024}),
    "protgpt2-10m": Architecture("protgpt2", _gpt2(7, 320, 5, dropout=0.0), {"size": 4096}),
    "mistral-dna-1m": Architecture("mistral-dna", _mixtral(4, 64, 8, experts=8, positions=256)),
    "mistral-dna-17m": Architecture("mistral-dna", _mixtral(8, 256, 8, experts=8, positions=512)),
    "dna-1m": Architecture("esm-dna", _esm(5, 128, 4)),
    "dna-3m": Architecture("esm-dna", _esm(7, 192, 3)),
    "nt-1m": Architecture("nucleotide-transformer", _esm(2, 128, 4, **_NUCLEOTIDE_TRANSFORMER)),
    # width, depth and heads of NT-v2 50M; its gated feed-forward is remote code, so a plain one with as many weights
    "nt-50m": Architecture("nucleotide-transformer", _esm(12, 512, 16, 3072, **_NUCLEOTIDE_TRANSFORMER)),
    **{f"dnabert-{k}": Architecture("dnabert", _bert(12, 768, 12, 3072, 512, 0.1), {"kmer": k}) for k in (3, 4, 5, 6)},
    "tiny-esm2": Architecture("esm2", _esm(2, 32, 2)),
    "tiny-esm1b": Architecture("esm1b", _esm(2, 32, 2, **_ESM1B)),
    "tiny-esmc": Architecture("esmc", _esmc(2, 32, 2, 64)),
    "tiny-protbert": Architecture("protbert", _bert(2, 32, 2, 64, positions=1024)),
    "tiny-prott5": Architecture("prott5", _t5(2, 32, 2, 16, 64, dropout_rate=0.0)),
    "tiny-prostt5": Architecture("prostt5", _t5(2, 32, 2, 16, 64, dropout_rate=0.0)),
    "tiny-ankh": Architecture("ankh", _t5(2, 32, 2, 16, 64, **_ANKH)),
    "tiny-protgpt2": Architecture("protgpt2", _gpt2(2, 32, 2, dropout=0.0), {"size": 400}),
    "tiny-mistral-dna": Architecture("mistral-dna", _mixtral(2, 32, 2, experts=4, positions=256), {"size": 128}),
    "tiny-nucleotide-transformer": Architecture(
        "nucleotide-transformer", _esm(2, 32, 2, **_NUCLEOTIDE_TRANSFORMER), {"kmer": 6}
    ),
    "tiny-dna": Architecture("esm-dna", _esm(2, 32, 2)),
    "tiny-dnabert": Architecture("dnabert", _bert(2, 32, 2, 64, 512), {"kmer": 3}),
    "tiny-generic": Architecture("generic", _electra(2, 32, 2)),
}

"""A model's name to its configuration, tokenizer and backbone: scratch, local folder or hub, all through one code path.

Everything that can be checked is checked before weights are loaded. Weights are read from safetensors only: a pickle
can run code, so none is ever downloaded or opened here.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

from plft.errors import PlftError, did_you_mean, first_three, look_up
from plft.families import AMINO_ACIDS, NUCLEOTIDES, Family, recognise
from plft.hub import COMMIT, fetch
from plft.scratch import ARCHITECTURES, architecture
from plft.tokens import ResidueTokenizer

BUILTIN: dict[str, str] = {"protein": "protein", "dna": "dna"}  # name -> folder inside builtin/

SHORT_NAMES: dict[str, str] = {
    "esm2-8m": "facebook/esm2_t6_8M_UR50D",
    "esm2-35m": "facebook/esm2_t12_35M_UR50D",
    "esm2-150m": "facebook/esm2_t30_150M_UR50D",
    "esm2-650m": "facebook/esm2_t33_650M_UR50D",
    "esm2-3b": "facebook/esm2_t36_3B_UR50D",
    "esm2-15b": "facebook/esm2_t48_15B_UR50D",
    "esm1b": "facebook/esm1b_t33_650M_UR50S",
    "esm1v": "facebook/esm1v_t33_650M_UR90S_1",
    "esmc-300m": "biohub/ESMC-300M",
    "esmc-600m": "biohub/ESMC-600M",
    "protbert": "Rostlab/prot_bert",
    "protbert-bfd": "Rostlab/prot_bert_bfd",
    "prott5-xl": "Rostlab/prot_t5_xl_half_uniref50-enc",
    "prostt5": "Rostlab/ProstT5",
    "ankh-base": "ElnaggarLab/ankh-base",
    "ankh-large": "ElnaggarLab/ankh-large",
    "protgpt2": "nferruz/ProtGPT2",
    "mistral-dna-1m": "RaphaelMourad/Mistral-DNA-v1-1M-hg38",
    "mistral-dna-17m": "RaphaelMourad/Mistral-DNA-v1-17M-hg38",
    "nt-500m": "InstaDeepAI/nucleotide-transformer-500m-human-ref",
    "dnabert-6": "zhihan1996/DNA_bert_6",
    "dnabert2": "zhihan1996/DNABERT-2-117M",
    "gena-lm": "AIRI-Institute/gena-lm-bert-base-t2t",
}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model that can be loaded: what it is, its tokenizer, and where its weights come from.

    name: as the user wrote it.  revision: the resolved commit of a hub repository.  folder: local files, None for
    scratch.  seed: of the random weights of a scratch model.  trust_remote_code: True when the model runs code of its
    own repository.
    """

    name: str
    family: Family
    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    revision: str | None = None
    folder: Path | None = None
    is_scratch: bool = False
    trust_remote_code: bool = False
    seed: int = 0

    @property
    def lasting_name(self) -> str:
        """The name to keep: without its revision, which is kept beside it, and a local folder as an absolute path."""
        if self.folder is None or self.name.startswith("builtin:"):
            return self.name
        return str(self.folder.resolve()) if self.revision is None else self.name.partition("@")[0]

    @property
    def width(self) -> int:
        """Size of the hidden states."""
        return int(self.config.hidden_size)

    @cached_property
    def residue_tokenizer(self) -> ResidueTokenizer:
        """The tokenizer together with the residues its tokens cover."""
        return ResidueTokenizer(self.tokenizer, self.family)

    @cached_property
    def sha256(self) -> str | None:
        """Digest of the weight files: of the one file, or of the digests of several in the order of their names."""
        if self.folder is None:
            return None
        digests = [_file_digest(file) for file in _weight_files(self.folder)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def load_backbone(
        self, dtype: torch.dtype = torch.float32, quantization_config: Any = None, seed: int | None = None
    ) -> nn.Module:
        """Load the encoder or decoder without any head; its output has `last_hidden_state`.

        quantization_config: handed to transformers.  seed: of a scratch model's weights, by default the checkpoint's;
        the global random state is left as it was.
        Raises PlftError when the weights are damaged or do not fill the model.
        """
        if self.folder is not None:
            return _load(self.folder, self, dtype, quantization_config)
        backbone = _fresh(self, self.seed if seed is None else seed)
        if quantization_config is None:
            return backbone.to(dtype)
        with tempfile.TemporaryDirectory() as folder:  # transformers quantises only while it reads a file
            with quiet_transformers():
                backbone.save_pretrained(folder)
            return _load(Path(folder), self, dtype, quantization_config)

    def without_weights(self) -> nn.Module | None:
        """The backbone on the meta device: its layers without their weights; None where only its own code builds it.

        Raises PlftError when the configuration cannot be built.
        """
        if type(self.config) not in _auto_class(self.config)._model_mapping:
            return None
        try:
            return _on_meta(self.config)
        except BROKEN as error:
            raise PlftError(
                f"{self.name}: no model can be built from its config.json ({first_line(error)}). Copy the model again."
            ) from error


# -- names -------------------------------------------------------------------------------------------------------------


def resolve(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    sequences: Iterable[str] | None = None,
    seed: int = 0,
) -> Checkpoint:
    """Return the checkpoint that a name stands for, without loading weights.

    name: `scratch:NAME`, `builtin:NAME`, a local folder, a short name or a hub id; the last two take `@revision`.
    After `scratch:` comes an architecture, or a built-in model or a folder (with a slash) whose shape and tokenizer
    are taken, and not its weights.
    sequences: train the tokenizer of a scratch model that learns its pieces.  seed: of a scratch model's weights.
    Raises PlftError for names that are not known, folders and repositories that hold no usable model, and no network.
    """
    if name.startswith("scratch:"):
        shape = name.removeprefix("scratch:")
        if shape.startswith("builtin:"):
            return _without_its_weights(name, _from_builtin(shape), seed)
        if "/" in shape:
            folder = Path(shape).expanduser()
            if not folder.is_dir():
                raise PlftError(f"{name}: '{shape}' is not a folder. Give one that holds config.json and a tokenizer.")
            return _without_its_weights(name, _from_folder(name, folder, trust_remote_code), seed)
        return _from_scratch(name, sequences, seed)
    if name.startswith("builtin:"):
        return _from_builtin(name)
    if name and Path(name).expanduser().is_dir():
        return _from_folder(name, Path(name).expanduser(), trust_remote_code)
    return _from_hub(name, revision, trust_remote_code)


def _from_scratch(name: str, sequences: Iterable[str] | None, seed: int) -> Checkpoint:
    tokenizer, config = architecture(name.removeprefix("scratch:")).build(sequences)
    return _assemble(Checkpoint(name, *_recognised(name, tokenizer, config), is_scratch=True, seed=seed))


def _without_its_weights(name: str, checkpoint: Checkpoint, seed: int) -> Checkpoint:
    config = copy.deepcopy(checkpoint.config)
    config.dtype = None  # the weights to come are drawn in fp32, whatever those in the folder are
    return replace(checkpoint, name=name, config=config, folder=None, is_scratch=True, seed=seed)


def _from_builtin(name: str) -> Checkpoint:
    folder = look_up("built-in model", name.removeprefix("builtin:"), BUILTIN)
    return _from_folder(name, Path(__file__).parent / "builtin" / folder, False)


def _from_folder(name: str, folder: Path, trust_remote_code: bool) -> Checkpoint:
    settings = _read_settings(name, folder)
    needs_code = _check_code(name, _code_sources(name, settings, folder), trust_remote_code, pinned=True)
    tokenizer, config = _read(name, folder, needs_code)
    _check_weights(name, folder)
    parts = _recognised(name, tokenizer, config)
    return _assemble(Checkpoint(name, *parts, folder=folder, trust_remote_code=needs_code))


def _from_hub(name: str, revision: str | None, trust_remote_code: bool) -> Checkpoint:
    repository, wanted = _split_name(name, revision)
    small = fetch(repository, wanted, weights=False, code=trust_remote_code)
    settings = _read_settings(name, small)
    pinned = wanted is not None and COMMIT.fullmatch(wanted) is not None
    needs_code = _check_code(name, _code_sources(name, settings, small), trust_remote_code, pinned, commit=small.name)
    tokenizer, config = _read(name, small, needs_code)
    folder = fetch(repository, small.name, weights=True, code=needs_code)
    _check_weights(name, folder)
    parts = _recognised(repository, tokenizer, config)
    checkpoint = Checkpoint(name, *parts, revision=folder.name, folder=folder, trust_remote_code=needs_code)
    return _assemble(checkpoint)


def _split_name(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return repository and revision of a short name or hub id; a name that can be neither is a PlftError."""
    short, _, written = name.partition("@")
    if written and revision and written != revision:
        raise PlftError(
            f"Model '{name}' names revision {written}, and the revision given is {revision}. Give only one."
        )
    repository = SHORT_NAMES.get(short, short)
    if name.startswith((".", "/", "~")) or repository.count("/") > 1 or Path(name).is_file():
        raise PlftError(f"'{name}' is not a folder. Give one that holds config.json, a hub id or a known name.")
    if "/" not in repository:
        hint = f" Did you mean 'scratch:{short}'?" if short in ARCHITECTURES else did_you_mean(short, SHORT_NAMES)
        raise PlftError(
            f"Unknown model '{short}'. Give a folder, a hub id (owner/name), scratch:NAME, or one of: "
            f"{', '.join(SHORT_NAMES)}.{hint}"
        )
    return repository, written or revision


# -- reading and checking ----------------------------------------------------------------------------------------------

# files that hold a vocabulary; ESM C carries its own in the code of transformers
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")


def _read_settings(name: str, folder: Path) -> dict[str, Any]:
    """Return config.json as it is written."""
    file = folder / "config.json"
    if not file.is_file() and (folder / "adapter_config.json").is_file():
        raise PlftError(f"{name} holds an adapter, not a model: give the model it was trained on, or the run folder.")
    if not file.is_file():
        raise PlftError(f"{name} has no config.json, so it is not a transformers model. Give the folder that holds it.")
    settings = _read_json(name, file)
    if not settings.get("model_type"):
        raise PlftError(f"{name}: config.json does not say its model_type. Save the model with save_pretrained again.")
    return settings


def _read_json(name: str, file: Path) -> dict[str, Any]:
    """Return the object in a JSON file, an empty one where there is no file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PlftError(f"{name}: {file.name} cannot be read ({error}). Copy the model again.") from error
    return content if isinstance(content, dict) else {}


def _code_sources(name: str, settings: dict[str, Any], folder: Path) -> set[str]:
    """Return the Python names that model and tokenizer want to import from their repository."""
    for_tokenizer = _read_json(name, folder / "tokenizer_config.json")
    maps = [settings.get("auto_map") or {}, for_tokenizer.get("auto_map") or {}]
    named = [list(each.values()) if isinstance(each, dict) else each for each in maps]
    # a tokenizer may name two classes, slow and fast, as a list
    values = [value for sources in named for value in sources]
    flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return {str(each) for each in flat if each}


def _check_code(name: str, sources: set[str], trusted: bool, pinned: bool, commit: str = "") -> bool:
    """Return whether the model runs its own code; refuse it without consent and a pinned revision."""
    if not sources:
        return False
    elsewhere = sorted(source.partition("--")[0] for source in sources if "--" in source)
    if elsewhere:
        raise PlftError(
            f"{name} runs code from another repository ({elsewhere[0]}), which cannot be pinned. Choose another."
        )
    how = f"--trust-remote-code and the pinned revision @{commit}" if commit else "--trust-remote-code"
    if not trusted or not pinned:
        code = first_three(sorted(sources))
        raise PlftError(f"{name} runs its own Python code ({code}). Read it, and if you trust it pass {how}.")
    return True


def _read(name: str, folder: Path, needs_code: bool) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=needs_code)
    except (ValueError, KeyError, TypeError, OSError, StrictDataclassError) as error:
        raise PlftError(
            f"{name}: transformers {transformers_version} cannot use its config.json ({first_line(error)}). "
            "Upgrade transformers or choose another model."
        ) from error
    if config.model_type != "esmc" and not any((folder / each).is_file() for each in _VOCABULARIES):
        raise PlftError(f"{name} has no tokenizer ({', '.join(_VOCABULARIES[:4])}). Save one into the same folder.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=needs_code)
    except Exception as error:  # the Rust tokenizers raise bare Exception for a damaged file
        raise PlftError(f"{name}: its tokenizer cannot be read ({first_line(error)}). Copy the model again.") from error
    return tokenizer, config


def _check_weights(name: str, folder: Path) -> None:
    if _weight_files(folder):
        return
    pickled = sorted(file.name for file in folder.glob("*.bin")) if folder.is_dir() else []
    found = f"holds only {first_three(pickled)}" if pickled else "holds no *.safetensors file"
    raise PlftError(
        f"{name} {found}; weights are read from safetensors only, because a pickle can run code. "
        "Many repositories offer a conversion as a pull request: NAME@refs/pr/N. Or convert it with save_pretrained."
    )


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("model*.safetensors"))
    return files or sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter"))


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text[:200].rstrip(".")


def _recognised(
    name: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> tuple[Family, PreTrainedTokenizerBase, PreTrainedConfig]:
    return recognise(config, tokenizer.get_vocab(), name), tokenizer, config


def _assemble(checkpoint: Checkpoint) -> Checkpoint:
    """Give the padding ids a meaning, fill in an unknown family's parts, and check that tokens fit the embedding."""
    tokenizer, config = checkpoint.tokenizer, copy.deepcopy(checkpoint.config)
    if tokenizer.pad_token_id is None:  # GPT-2; padding is masked, so any symbol of the vocabulary serves
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    pad = config.pad_token_id
    if pad is None or not 0 <= pad < config.vocab_size:  # Mistral-Codon says 69, and has the symbols 0 to 68
        config.pad_token_id = tokenizer.pad_token_id
    family = checkpoint.family if checkpoint.family.is_known else _with_parts(checkpoint.family, config)
    checkpoint = replace(checkpoint, config=config, family=family)
    _check_tokens(checkpoint)
    return checkpoint


def _check_tokens(checkpoint: Checkpoint) -> None:
    letters = NUCLEOTIDES if checkpoint.family.alphabet == "dna" else AMINO_ACIDS
    probe = "".join(np.random.default_rng(0).choice(list(letters), size=400))
    highest, rows = int(checkpoint.residue_tokenizer.encode(probe).input_ids.max()), checkpoint.config.vocab_size
    if highest >= rows:
        raise PlftError(
            f"{checkpoint.name}: the tokenizer gives id {highest}, but the model has only {rows} symbols. "
            "Tokenizer and model do not belong together."
        )


# -- backbones ---------------------------------------------------------------------------------------------------------


def meta_backbone(name: str) -> nn.Module:
    """Build a scratch architecture on the meta device: shapes and parameter counts without memory."""
    _, config = architecture(name).build()
    return _on_meta(config)


def _on_meta(config: PreTrainedConfig) -> Any:
    with torch.device("meta"):
        return _trimmed(_auto_class(config).from_config(_for_backbone(config), **_options(config)))


# what transformers raises for a configuration whose numbers or names do not fit together
BROKEN = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError)


def _fresh(checkpoint: Checkpoint, seed: int) -> Any:
    config = checkpoint.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options = {"trust_remote_code": checkpoint.trust_remote_code, **_options(config)}
        return _trimmed(_auto_class(config).from_config(_for_backbone(config), **options))


def _load(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype, quantization_config: Any) -> nn.Module:
    config = _for_backbone(checkpoint.config)
    options = {"dtype": dtype, "trust_remote_code": checkpoint.trust_remote_code, **_options(config)}
    options["ignore_mismatched_sizes"] = True  # they are refused below, by name
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    try:
        with quiet_transformers():
            backbone, info = _auto_class(config).from_pretrained(
                folder, config=config, use_safetensors=True, output_loading_info=True, **options
            )
    except (SafetensorError, OSError, *BROKEN) as error:
        raise PlftError(
            f"{checkpoint.name}: its weights cannot be loaded ({first_line(error)}). Copy the model again."
        ) from error
    backbone = _trimmed(backbone)
    check_loaded(checkpoint.name, backbone, info)
    for module in backbone.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes would lay 4-bit weights out anew at the first
            module.support_avx512bf16_for_cpu = False  # prediction: only some shapes, and training cannot go on then
    return backbone


def check_loaded(name: str, backbone: nn.Module, info: dict[str, Any]) -> None:
    """Refuse weights that do not fill the model: what is missing would stay random."""
    if info["mismatched_keys"]:
        key, found, wanted = sorted(info["mismatched_keys"])[0]
        raise PlftError(
            f"{name}: weight '{key}' is {list(found)}, but its config.json says {list(wanted)}. "
            "Weights and configuration do not belong together: copy the model again."
        )
    learned = {key for key, _ in backbone.named_parameters()}  # buffers such as rotary frequencies are computed
    missing = sorted(key for key in info["missing_keys"] if key in learned)
    if missing:
        raise PlftError(f"{name} lacks weights, which would stay random: {first_three(missing)}. Copy it again.")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing: its report on a checkpoint names the head left out on purpose, and alarms."""
    verbosity, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            transformers_logging.enable_progress_bar()


def _auto_class(config: PreTrainedConfig) -> Any:
    """Return the class without a head; for T5 the encoder alone, never the decoder."""
    return AutoModelForTextEncoding if "t5" in config.model_type else AutoModel


def _for_backbone(config: PreTrainedConfig) -> PreTrainedConfig:
    config = copy.deepcopy(config)  # T5EncoderModel writes into it
    config.use_cache = False
    return config


def _options(config: PreTrainedConfig) -> dict[str, Any]:
    """Leave out the pooler where the class allows it: its weights would never get a gradient."""
    mapping = _auto_class(config)._model_mapping
    if type(config) not in mapping:
        return {}
    takes = inspect.signature(mapping[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


def _trimmed(backbone: Any) -> Any:
    """Drop ESM's contact head: it is not part of the forward pass, and DDP stops at parameters without a gradient."""
    if hasattr(backbone, "contact_head"):
        backbone.contact_head = None
    return backbone


def _with_parts(family: Family, config: PreTrainedConfig) -> Family:
    """Fill in where an unknown family keeps its blocks, and their linear layers, from a model without weights."""
    if type(config) not in _auto_class(config)._model_mapping:
        return family
    backbone = _on_meta(config)
    lists = {name: part for name, part in backbone.named_modules() if isinstance(part, nn.ModuleList)}
    blocks = next((name for name, part in lists.items() if len(part) == config.num_hidden_layers), "")
    linear = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
    inside = lists[blocks].named_modules() if blocks else backbone.named_modules()
    names = dict.fromkeys(name.rpartition(".")[2] for name, part in inside if isinstance(part, linear))
    keys = tuple(name for name in names if name in ("key", "value", "k_proj", "v_proj", "k", "v", "k_lin", "v_lin"))
    return replace(family, blocks=blocks, lora_targets=tuple(names), ia3_targets=keys)

"""Which weights train: one row per tuning method.

`apply` freezes the backbone, lets the method's weights train and returns the backbone, wrapped by peft where the method
is one of peft's. The head always trains; it is not part of the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plft.config import TuningConfig, parse_last
from plft.errors import PlftError, unknown_name
from plft.families import Family

WIDE = 1280  # of ESM-2 650M: the learning rates below are for backbones of that width


@dataclass(frozen=True)
class Method:
    """One row of the tuning table.

    prepare: (backbone, family, settings) -> the tuned backbone, gradients switched on where the method wants them.
    learning_rate: default peak rate for a pretrained backbone; scratch_learning_rate: for one with random weights.
    narrowing: by this power of WIDE / width the rate of a narrower pretrained backbone is larger.
    """

    name: str
    title: str
    prepare: Callable[[nn.Module, Family, TuningConfig], nn.Module]
    learning_rate: float
    scratch_learning_rate: float
    narrowing: float = 0.0
    is_peft: bool = False
    quantizes: bool = False

    def rate(self, width: int, is_scratch: bool) -> float:
        """Default peak learning rate for a backbone: the narrower, the larger the steps its weights bear (Yang et al.
        2022, tensor programs V)."""
        if is_scratch:
            return self.scratch_learning_rate
        return float(f"{self.learning_rate * max(1.0, WIDE / width) ** self.narrowing:.2g}")


def blocks_of(backbone: nn.Module, family: Family) -> nn.ModuleList:
    """The list of transformer blocks; a PlftError where the family row does not point at one."""
    return backbone.get_submodule(path_of_blocks(backbone, family))  # type: ignore[return-value]


def path_of_blocks(backbone: nn.Module, family: Family) -> str:
    """Dotted path of the list of blocks: the family's, or for an unknown model its longest ModuleList."""
    lists = lists_of_modules(backbone)
    if family.blocks in lists:
        return family.blocks
    if family.blocks or not lists:
        raise PlftError(
            f"The blocks of this model ({type(backbone).__name__}) were not found, "
            "so last-N, adapter and tuning.blocks do not work for it. Use head, lora or full."
        )
    return longest_list(lists)


def lists_of_modules(backbone: nn.Module) -> dict[str, nn.ModuleList]:
    """Every list of modules that is not empty, by its dotted path."""
    return {name: each for name, each in backbone.named_modules() if isinstance(each, nn.ModuleList) and len(each)}


def longest_list(lists: dict[str, nn.ModuleList]) -> str:
    """The path of the longest list: the blocks of a model that is not known."""
    return max(lists, key=lambda name: (len(lists[name]), -len(name)))


def chosen_blocks(backbone: nn.Module, family: Family, settings: TuningConfig) -> range:
    """Indices of the blocks that may be tuned: all, or the last N of `settings.blocks`."""
    count = len(blocks_of(backbone, family))
    if settings.blocks is None:
        return range(count)
    wanted = parse_last(settings.blocks)
    if wanted > count:
        raise PlftError(f"tuning.blocks {settings.blocks}: the model has only {count} blocks.")
    return range(count - wanted, count)


def linear_layers(module: nn.Module) -> list[str]:
    """Full names of the layers an adapter can be put on."""
    kinds = ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt")
    return [name for name, each in module.named_modules() if type(each).__name__ in kinds]


def matching(names: Iterable[str], targets: Iterable[str]) -> list[str]:
    """The names whose last part, or whole name, is one of the targets."""
    targets = tuple(targets)
    return [name for name in names if any(name == each or name.endswith("." + each) for each in targets)]


def adapter_targets(backbone: nn.Module, family: Family, settings: TuningConfig, targets: Iterable[str]) -> list[str]:
    """Names for peft's `target_modules`; a method that would train nothing is an error that names the layers there are.

    Short names are kept where all blocks are tuned, full names where `settings.blocks` restricts them.
    """
    layers = linear_layers(backbone)
    targets = list(targets) or sorted({name.rpartition(".")[2] for name in layers})
    if settings.blocks is not None:
        path = path_of_blocks(backbone, family)
        inside = tuple(f"{path}.{index}." for index in chosen_blocks(backbone, family, settings))
        layers = [name for name in layers if name.startswith(inside)]
    unmatched = [target for target in targets if not matching(layers, [target])]
    if unmatched:
        there = sorted({name.rpartition(".")[2] for name in layers})
        raise PlftError(
            f"tuning.targets: no layer of this model is called {', '.join(repr(each) for each in unmatched)}. "
            f"Layers there are: {', '.join(there)}."
        )
    return matching(layers, targets) if settings.blocks is not None else targets


def freeze(module: nn.Module) -> None:
    """Switch off the gradient of every parameter."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def unfreeze(module: nn.Module) -> None:
    """Switch on the gradient of every floating-point parameter."""
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


def train_head_only(backbone: nn.Module, family: Family, settings: TuningConfig) -> nn.Module:
    """Leave the whole backbone frozen."""
    return backbone


def train_all(backbone: nn.Module, family: Family, settings: TuningConfig) -> nn.Module:
    """Train every weight of the backbone."""
    unfreeze(backbone)
    return backbone


def train_last_blocks(backbone: nn.Module, family: Family, settings: TuningConfig) -> nn.Module:
    """Train the last N blocks and the norm behind them."""
    blocks = blocks_of(backbone, family)
    wanted = parse_last(settings.method)
    if wanted > len(blocks):
        raise PlftError(f"tuning.method {settings.method}: the model has only {len(blocks)} blocks.")
    for block in blocks[-wanted:]:
        unfreeze(block)
    for norm in final_norms(backbone, path_of_blocks(backbone, family)):
        unfreeze(norm)
    return backbone


def final_norms(backbone: nn.Module, path: str) -> list[nn.Module]:
    """Norms that stand beside the list of blocks (behind the last one) and not before it. path: of the list."""
    parent, _, name = path.rpartition(".")
    children = dict(backbone.get_submodule(parent).named_children())
    behind = list(children)[list(children).index(name) + 1 :]
    return [children[each] for each in behind if is_norm(children[each])]


def is_norm(module: nn.Module) -> bool:
    """Layer norms of any kind (LayerNorm, RMSNorm, T5LayerNorm, ...)."""
    return "norm" in type(module).__name__.lower() and not list(module.children())


def with_lora(backbone: nn.Module, family: Family, settings: TuningConfig, dora: bool = False) -> nn.Module:
    """Low-rank updates (Hu et al. 2021), with weight decomposition for DoRA (Liu et al. 2024)."""
    from peft import LoraConfig, get_peft_model

    targets = settings.targets or family.lora_targets
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=adapter_targets(backbone, family, settings, targets),
        fan_in_fan_out=uses_conv1d(backbone, targets),
        use_dora=dora,
        bias="none",
    )
    return get_peft_model(backbone, config)


def with_dora(backbone: nn.Module, family: Family, settings: TuningConfig) -> nn.Module:
    """LoRA with the magnitude of each weight column trained on its own."""
    return with_lora(backbone, family, settings, dora=True)


def with_ia3(backbone: nn.Module, family: Family, settings: TuningConfig) -> nn.Module:
    """Learned rescaling of keys, values and feed-forward activations (Liu et al. 2022)."""
    from peft import IA3Config, get_peft_model

    wanted = settings.targets or family.ia3_targets
    forward_layers = [each for each in wanted if each in family.ia3_feedforward]
    config = IA3Config(
        target_modules=adapter_targets(backbone, family, settings, wanted),
        feedforward_modules=adapter_targets(backbone, family, settings, forward_layers) if forward_layers else [],
        fan_in_fan_out=uses_conv1d(backbone, wanted),
    )
    return get_peft_model(backbone, config)


def uses_conv1d(backbone: nn.Module, targets: Iterable[str]) -> bool:
    """GPT-2 keeps its weights transposed in Conv1D layers; peft has to be told."""
    modules = dict(backbone.named_modules())
    return any(type(modules[name]).__name__ == "Conv1D" for name in matching(modules, targets))


class Bottleneck(nn.Module):
    """Down-projection, GELU, up-projection, added to its input (Houlsby et al. 2019). Starts as the identity."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., width)"""
        return hidden + self.up(nn.functional.gelu(self.down(hidden)))


def with_bottlenecks(backbone: Any, family: Family, settings: TuningConfig) -> nn.Module:
    """Put a bottleneck adapter behind each chosen block (the placement of Pfeiffer et al. 2021)."""
    blocks = blocks_of(backbone, family)
    for index in chosen_blocks(backbone, family, settings):
        adapter = Bottleneck(backbone.config.hidden_size, settings.bottleneck)
        blocks[index].bottleneck = adapter
        blocks[index].register_forward_hook(through_bottleneck)
    return backbone


def through_bottleneck(block: Any, inputs: Any, output: Any) -> Any:
    """Forward hook: send the block's hidden states through its adapter; other outputs pass unchanged."""
    if isinstance(output, tuple):
        return (block.bottleneck(output[0]), *output[1:])
    return block.bottleneck(output)


METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method("head", "head only, backbone frozen", train_head_only, 1e-3, 1e-3),
        Method("last-N", "the last N blocks and the head", train_last_blocks, 1e-4, 1e-3, narrowing=1),
        Method("lora", "low-rank updates", with_lora, 5e-4, 1e-3, narrowing=0.5, is_peft=True),
        Method("dora", "low-rank updates with separate magnitudes", with_dora, 5e-4, 1e-3, narrowing=0.5, is_peft=True),
        Method(
            "qlora",
            "low-rank updates on a 4-bit backbone",
            with_lora,
            5e-4,
            1e-3,
            narrowing=0.5,
            is_peft=True,
            quantizes=True,
        ),
        Method("ia3", "learned rescaling of activations", with_ia3, 3e-3, 3e-3, is_peft=True),
        Method("adapter", "bottleneck adapters behind each block", with_bottlenecks, 5e-4, 1e-3, narrowing=0.5),
        Method("full", "every weight", train_all, 3e-5, 1e-3, narrowing=1),
    )
}


def find_method(name: str) -> Method:
    """Return the row of a method; any ``last-N`` is the row "last-N"; unknown names are refused with a suggestion."""
    if name in METHODS and name != "last-N":
        return METHODS[name]
    try:
        parse_last(name)
    except ValueError:
        raise unknown_name("tuning method", name, METHODS) from None
    return METHODS["last-N"]


def check_settings(settings: TuningConfig) -> None:
    """Refuse an unknown method, and settings that would have no effect with the one chosen."""
    method = find_method(settings.method)
    if settings.targets is not None and not method.is_peft:
        names = ", ".join(name for name, row in METHODS.items() if row.is_peft)
        raise PlftError(f"tuning.targets has no effect with {settings.method}. Remove it, or use one of: {names}.")
    if settings.blocks is not None and not (method.is_peft or method.name == "adapter"):
        raise PlftError(
            f"tuning.blocks has no effect with {settings.method}. Use tuning.method {settings.blocks} to train whole "
            "blocks, or an adapter method such as lora."
        )


def quantization_config() -> Any:
    """4-bit NF4 with double quantisation and bf16 compute (Dettmers et al. 2023)."""
    from plft.errors import missing_extra

    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise missing_extra("bitsandbytes", "quant", "qlora") from None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def apply(backbone: nn.Module, family: Family, settings: TuningConfig) -> nn.Module:
    """Freeze the backbone, then let the method's weights train. Returns the backbone or peft's wrapper around it."""
    method = find_method(settings.method)
    freeze(backbone)
    tuned = method.prepare(backbone, family, settings)
    if settings.train_layer_norms:
        for module in tuned.modules():
            if is_norm(module):
                unfreeze(module)
    freeze_unused(tuned)
    return tuned


def freeze_unused(backbone: nn.Module) -> None:
    """Parts that no output depends on never train: DDP would wait for their gradients for ever."""
    for name, module in backbone.named_modules():
        if name.rpartition(".")[2] in ("contact_head", "pooler"):
            freeze(module)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) numbers of parameters; 4-bit weights count as the numbers they stand for."""
    trainable = total = 0
    for parameter in model.parameters():
        size = parameter.numel()
        quantized = getattr(parameter, "quant_state", None)
        if quantized is not None:
            size = quantized.shape.numel()
        total += size
        trainable += size if parameter.requires_grad else 0
    return trainable, total


def has_4bit_layers(model: nn.Module) -> bool:
    """Whether some of a model's weights are kept in 4 bits, as QLoRA has them."""
    return any(type(each).__name__ == "Linear4bit" for each in model.modules())

"""Backbone + head (+ adapter) as one PreTrainedModel, and running it over a dataset."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from plft.attention import can_pack, fuse, run_padded, use_packing, without_adapters
from plft.batching import Collator, most_tokens, sorted_batches
from plft.checkpoints import resolve
from plft.dataset import SequenceDataset
from plft.errors import PlftError
from plft.features import Prefix, run_from, states_before
from plft.heads import as_mask, mean_over_residues
from plft.labels import LabelSpace, TaskType
from plft.memory import ran_out_of_memory
from plft.parallel import side_by_side, workers_for
from plft.tasks import TASKS, target_weights, weighted_loss
from plft.tuning import freeze, freeze_unused

# peft's models for a task hand these on to every model; they are not for the head
PEFT_ARGUMENTS = frozenset({"inputs_embeds", "output_attentions", "return_dict"})


@dataclass
class TaskOutput(SequenceClassifierOutput):
    """What transformers gives for a classifier, and means: (batch, width) float32, hidden states over residues."""

    means: Tensor | None = None


class PLMTaskModel(PreTrainedModel):
    """A pretrained backbone and a task head; gradients flow through both unless a tuning method freezes the backbone.

    task_type: a TaskType or its name.  backbone_name: anything `--model` takes, or a backbone module.  head: any
    nn.Module called as ``head(hidden_states, attention_mask, **extra)``.  class_weights: (classes,) for the loss.
    """

    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # the trainer hands over `num_items_in_batch`, the weight of a whole optimiser step
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        task_type: TaskType | str,
        backbone_name: str | nn.Module,
        head: nn.Module,
        freeze_backbone: bool = False,
        class_weights: list[float] | None = None,
    ) -> None:
        backbone = resolve(backbone_name).load_backbone() if isinstance(backbone_name, str) else backbone_name
        super().__init__(copy.deepcopy(backbone.config))  # a copy: what Trainer sets here must not change the backbone
        self.task_type = TaskType(task_type)
        self.backbone: Any = backbone
        self.head: Any = head
        self.kept_prefix: Prefix | None = None  # while features of it are kept
        self._no_split_modules = layer_classes(backbone)  # what FSDP wraps
        self.all_tied_weights_keys: dict[str, str] = {}
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        plain = without_adapters(backbone)
        if can_pack(plain):
            use_packing(plain)
            fuse(plain)
        freeze_unused(backbone)
        if freeze_backbone:
            freeze(backbone)

    def _check_and_adjust_experts_implementation(self, experts_implementation: str | None) -> Any:
        return experts_implementation  # the backbone has settled it for itself

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        residue_mask: Tensor | None = None,
        residue_tokens: Tensor | None = None,
        sequence_weights: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
        features: Tensor | None = None,
        output_hidden_states: bool = False,
        output_means: bool = False,
        **head_args: Any,
    ) -> TaskOutput:
        """Hidden states of the backbone -> head -> logits, and the loss where labels are given.

        input_ids, attention_mask: (batch, tokens).  residue_mask: (batch, tokens) bool, tokens that are residues.
        features: (batch, tokens or 1, width), what `frozen_states` gave for this batch.
        residue_tokens: (batch, residues) int, the token of each residue, -1 = padding; the head then sees one position
        per residue and labels are (batch, residues).  labels: as `batching.collate` makes them.
        Without residue_mask and residue_tokens the head sees every attended token.  output_means: also the mean
        hidden states over what the head sees.
        """
        hidden_states = None
        everything = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if output_hidden_states and features is None:
            outputs = self.backbone(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
            hidden, hidden_states = last_hidden_state(outputs), getattr(outputs, "hidden_states", None)
        else:
            hidden = self.hidden(input_ids, everything, features)
        mask = attention_mask
        if features is not None and self.prefix.pooled:
            mask = torch.ones_like(hidden[..., 0])
        elif residue_tokens is not None:
            hidden, mask = per_residue(hidden, residue_tokens), residue_tokens >= 0
        elif residue_mask is not None:
            mask = residue_mask
        extra = {name: each for name, each in head_args.items() if name not in PEFT_ARGUMENTS}
        logits = self.head(hidden, attention_mask=mask, **extra)
        loss = None
        if labels is not None:
            weights = target_weights(labels, sequence_weights, self.class_weights)
            loss = weighted_loss(TASKS[self.task_type.value], logits, labels, weights, num_items_in_batch)
        means = mean_over_residues(hidden.float(), as_mask(hidden, mask)) if output_means else None
        return TaskOutput(loss=loss, logits=logits, hidden_states=hidden_states, means=means)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor, features: Tensor | None = None) -> Tensor:
        """The last hidden states: (batch, tokens) -> (batch, tokens, width).

        features: what `frozen_states` gave for this batch; the backbone then begins where that ends.
        """
        plain = without_adapters(self.backbone)
        if features is not None:
            features = features.to(torch.float32)
            if self.prefix.blocks is None:
                return features
            return run_from(plain, self.prefix.blocks, features, input_ids, attention_mask)
        if can_pack(plain):
            return run_padded(plain, input_ids, attention_mask)
        return last_hidden_state(self.backbone(input_ids=input_ids, attention_mask=attention_mask))

    @property
    def packs(self) -> bool:
        """Whether the backbone runs over sequences laid end to end, without padding."""
        return can_pack(without_adapters(self.backbone))

    @property
    def prefix(self) -> Prefix:
        """What of the backbone never changes in training: possibly nothing."""
        return self.kept_prefix or Prefix.of(self.backbone, self.head)

    def frozen_states(
        self, input_ids: Tensor, attention_mask: Tensor, residue_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """What the frozen beginning of the backbone makes of a batch: (batch, tokens, width), or (batch, 1, width)."""
        prefix = self.prefix
        if prefix.blocks is not None:
            return states_before(without_adapters(self.backbone), prefix.blocks, input_ids, attention_mask)
        hidden = self.hidden(input_ids, attention_mask)
        if not prefix.pooled:
            return hidden
        return self.head.pooled(hidden, attention_mask if residue_mask is None else residue_mask)[:, None]

    @property
    def trained_part(self) -> nn.Module:
        """The head while features of the whole backbone are kept, else the model.

        The Trainer goes through all of a model several times a step, which takes longer than a step of the head.
        """
        return self.head if self.kept_prefix is not None and self.kept_prefix.blocks is None else self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of what trains."""
        part = self.trained_part
        super().zero_grad(set_to_none) if part is self else part.zero_grad(set_to_none)

    def train(self, mode: bool = True) -> PLMTaskModel:
        """Training mode, but for the frozen beginning of the backbone: dropout there would only be noise."""
        if self.trained_part is self.head:  # the backbone stays in evaluation mode, as it was when features were kept
            self.training = mode
            self.head.train(mode)
            return self
        super().train(mode)
        for module in self.prefix.modules(self.backbone) if mode else ():
            module.eval()
        return self

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute the backbone's blocks in the backward pass instead of keeping their activations."""
        self.backbone.activation_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def activation_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self.backbone.activation_checkpointing_disable()


def layer_classes(backbone: nn.Module) -> list[str]:
    """Class names of the layers that stay in one piece when a model is sharded: those it names itself and really has.

    A model that names none of its own is sharded at the modules of its longest list, the transformer blocks.
    """
    there = {type(each).__name__ for each in backbone.modules()}
    named = there.intersection(getattr(backbone, "_no_split_modules", None) or ())
    lists = [each for each in backbone.modules() if isinstance(each, nn.ModuleList)]
    blocks = {type(each).__name__ for each in max(lists, key=len, default=())}
    return sorted(named or blocks)


def last_hidden_state(outputs: Any) -> Tensor:
    """(batch, tokens, width) of what a backbone returned; remote code may return a plain tuple that begins with it."""
    return outputs[0] if isinstance(outputs, tuple) else outputs.last_hidden_state


class ReadyMadeModel(nn.Module):
    """A checkpoint that is a ...ForSequenceClassification or ...ForTokenClassification already, called like ours.

    Token logits are gathered per residue, so that they line up with the labels.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        residue_tokens: Tensor | None = None,
        **ignored: Any,
    ) -> SequenceClassifierOutput:
        """input_ids: (batch, tokens).  Returns logits (batch, outputs) or (batch, residues, outputs)."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        if residue_tokens is not None:
            logits = per_residue(logits, residue_tokens)
        return SequenceClassifierOutput(logits=logits)


def per_residue(hidden: Tensor, residue_tokens: Tensor) -> Tensor:
    """Gather each residue's token: (batch, tokens, width) and (batch, residues) -> (batch, residues, width)."""
    return hidden.gather(1, residue_tokens.clamp(min=0).unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def is_wrapped_by_peft(model: nn.Module) -> bool:
    """Whether a model is what `peft.get_peft_model` returns."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def train_the_head(model: Any) -> None:
    """Train and keep the head of a model in peft's wrapper, which freezes and forgets what it was not told about.

    The head becomes one of peft's `modules_to_save`; gradients that were switched on since then stay the only ones.
    """
    if not is_wrapped_by_peft(model):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    inner, config = model.get_base_model(), model.peft_config[model.active_adapter]
    if isinstance(inner.head, ModulesToSaveWrapper):
        return
    if any(isinstance(each, BaseTunerLayer) for each in inner.head.modules()):
        raise PlftError(
            "peft's target_modules reach into the head, which trains as a whole. "
            "Pass modules_to_save=['head'] in the peft configuration too."
        )
    if not hasattr(config, "modules_to_save"):  # prompt learning: nothing but the prompts is saved
        inner.head.requires_grad_(True)
        return
    chosen = {name for name, each in inner.head.named_parameters() if each.requires_grad}
    inner.head = ModulesToSaveWrapper(inner.head, model.active_adapter)
    inner.head.set_adapter(model.active_adapter)
    for name, each in inner.head.modules_to_save[model.active_adapter].named_parameters():
        each.requires_grad_(not chosen or name in chosen)
    config.modules_to_save = [*(config.modules_to_save or ()), "head"]


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Everything that training changed: parameters with a gradient, and the head with its buffers.

    Keys are the model's own names. Shared weights appear once, so that safetensors can hold them.
    """
    state: dict[str, Tensor] = {name: each for name, each in model.named_parameters() if each.requires_grad}
    parts = [*model.named_parameters(), *model.named_buffers()]
    state |= {name: each for name, each in parts if ".head." in f".{name}"}
    return {name: each.detach().contiguous() for name, each in state.items()}


def load_trained_state(model: nn.Module, state: dict[str, Tensor], source: str, partial: bool = False) -> None:
    """Put trained weights back; a name or shape that does not fit is a PlftError that names the file.

    partial: not every trained weight has to be there.
    """
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in state.items():
        if name not in own or own[name].shape != value.shape:
            raise PlftError(
                f"{source}: weight '{name}' does not fit this model. The file belongs to another run or is damaged."
            )
    missing = [name for name in trained_state(model) if name not in state]
    if missing and not partial:
        raise PlftError(f"{source}: weight '{missing[0]}' is missing. The file is incomplete.")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def outputs_of(logits: Tensor, task_type: TaskType, labels: LabelSpace) -> np.ndarray:
    """Logits -> probabilities, or values in the labels' own units, as float32 numpy.

    Returns (batch, [residues,] classes), or for regressions (batch, columns) and (batch, residues).
    """
    values = TASKS[task_type.value].activate(logits).cpu().numpy()
    if not task_type.is_regression:
        return values
    values = values * np.array(labels.scale, dtype=np.float32) + np.array(labels.mean, dtype=np.float32)
    return values[..., 0] if task_type.is_residue else values


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision for inference: "fp32" switches it off."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


Ran = tuple[list[int], dict[str, Any], Any]  # indices, inputs, outputs of the model


def run_batches(
    model: nn.Module,
    dataset: SequenceDataset,
    batches: list[list[int]],
    precision: str = "fp32",
    each_batch: Callable[[int], Any] | None = None,
    **options: Any,
) -> Iterator[Ran]:
    """Run a model over batches without gradients; yields (indices, inputs, outputs), telling each_batch(n) of each.

    A batch for which memory runs out is done in halves.  options: given to the model beside each batch.
    """
    collator = Collator(dataset)
    device = next(model.parameters()).device
    was_training = model.training
    workers = workers_for(model, most_tokens(batches, dataset.lengths))

    def run(indices: list[int]) -> list[Ran]:  # without calling itself: a cycle would keep the dataset in memory
        done, parts = [], [indices]
        while parts:
            part = parts.pop()
            inputs = collator([dataset[index] for index in part])
            inputs = {key: each.to(device) if isinstance(each, Tensor) else each for key, each in inputs.items()}
            try:
                # not inference_mode: FSDP keeps what it gathers here, and could not train with it afterwards
                with torch.no_grad(), autocast(device, precision):
                    done.append((part, inputs, model(**inputs, **options)))
            except (RuntimeError, MemoryError) as error:
                if len(part) == 1 or not ran_out_of_memory(error):
                    raise
                half = len(part) // 2
                parts += [part[half:], part[:half]]
        return done

    model.eval()
    try:
        for indices, inputs, outputs in chain.from_iterable(side_by_side(run, batches, workers)):
            yield indices, inputs, outputs
            if each_batch is not None:
                each_batch(len(indices))
    finally:
        model.train(was_training)


def infer(
    model: nn.Module,
    dataset: SequenceDataset,
    labels: LabelSpace,
    *,
    budget: int,
    precision: str = "fp32",
    each_batch: Callable[[int], Any] | None = None,
    states: list[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Outputs per record, in the records' order: see `outputs_of` for shapes, without the batch axis.

    budget: tokens per batch, padding included.  states: gets the mean hidden state over residues of every record too,
    (width,) float32; the model must be a `PLMTaskModel`, maybe wrapped by peft.
    """
    outputs: list[Any] = [None] * len(dataset)
    means: list[Any] = [None] * len(dataset)
    batches = sorted_batches(dataset.lengths, budget)
    options = {"output_means": True} if states is not None else {}
    for indices, _, result in run_batches(model, dataset, batches, precision, each_batch, **options):
        keep_outputs(outputs, indices, result.logits, dataset, labels)
        if states is not None:
            for index, mean in zip(indices, result.means.cpu().numpy(), strict=True):
                means[index] = mean
    if states is not None:
        states += means_per_record(means, dataset)
    return dataset.per_record(outputs)


def means_per_record(means: list[np.ndarray], dataset: SequenceDataset) -> list[np.ndarray]:
    """One mean per record: that of its windows, longer ones counting for more."""
    windows: dict[int, list[int]] = {}
    for index, each in enumerate(dataset.examples):
        windows.setdefault(each.record, []).append(index)
    lengths = [max(len(each.residue_tokens), 1) for each in dataset.examples]
    return [
        means[each[0]] if len(each) == 1 else np.average([means[i] for i in each], 0, [lengths[i] for i in each])
        for each in windows.values()
    ]


def keep_outputs(
    outputs: list[Any], indices: list[int], logits: Tensor, dataset: SequenceDataset, labels: LabelSpace
) -> None:
    """Write a batch's outputs to their examples' places, padding cut off."""
    values = outputs_of(logits, labels.task, labels)
    for row, index in enumerate(indices):
        n_residues = len(dataset[index].residue_tokens)
        outputs[index] = values[row, :n_residues] if dataset.is_residue_task else values[row]

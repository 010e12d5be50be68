"""Writes configuration.md from the configuration's own schema: python docs/make_configuration.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plft.config import LanguageModelConfig, RunConfig

TARGET = Path(__file__).with_name("configuration.md")

INTRODUCTION = """\
<!-- Written by docs/make_configuration.py; edit the descriptions in src/plft/config.py instead. -->

# Configuration

A run is described by the key `task` and five sections. Every key can stand in a YAML file given with
`plft train --config run.yaml`, and every key can be set on the command line with `--set section.key=value`; the common
ones also have a flag of their own (`plft train --help`). Flags override the file, and `--set` overrides flags.

<!-- file: run.yaml -->
```yaml
task: seq_classification
data: {file: proteins.csv}
model: {name: "scratch:esm2-1m"}
tuning: {method: full}
training: {epochs: 5, seed: 1}
```

```bash
plft train --config run.yaml --set training.epochs=3 --set tuning.method=last-2 --out run1
```

`null` means "choose for me". The choice is written to the run folder's own `run.yaml`, where every key is explicit, so
`plft train --config RUN/run.yaml --out AGAIN` repeats a run. With another model, tuning method or head on the command
line, what plft had chosen to fit the old one (learning rate, tokens per batch, longest input, pooling, layers of the
head, revision) is chosen anew, unless it is given too; a file with some keys only is always taken at its word. An
unknown key is refused, with the nearest known one.

"""

LANGUAGE_MODELS = """
## pretraining.yaml

What `plft pretrain` and `plft adapt` write into the new folder, every key explicit. Most keys have a flag of the same
name (`--batch-residues` for `batch_residues`; `plft pretrain --help`); `model` is `--arch` with `scratch:` before it.
The others are set with `--set key=value`, or from Python with `plft.config.language_model_config` and
`plft.language_run.run_language_model`. Without `--workers` the command line chooses it where the budget is in minutes.
Exactly one of `minutes`, `steps` and `residues` holds a number. See [Language models](language-models.md).

"""

KINDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def reference() -> str:
    """The whole page."""
    schema = RunConfig.model_json_schema()
    sections = schema["$defs"]
    task = schema["properties"]["task"]
    parts = [INTRODUCTION, "## task\n\n", table({"task": task}, needed=[])]
    for name, field in RunConfig.model_fields.items():
        if name != "task":
            section = sections[field.annotation.__name__]  # type: ignore[union-attr]
            parts.append(f"\n## {name}\n\n{section['description']}\n\n")
            parts.append(table(section["properties"], section.get("required", [])))
    language_models = LanguageModelConfig.model_json_schema()
    parts += [LANGUAGE_MODELS, table(language_models["properties"], language_models["required"])]
    return "".join(parts)


def table(properties: dict[str, dict[str, Any]], needed: list[str]) -> str:
    """One row per key."""
    rows = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for name, each in properties.items():
        default = "needed" if name in needed else f"`{json.dumps(each.get('default'), ensure_ascii=False)}`"
        rows.append(f"| `{name}` | {default} | {values(each)} | {each['description']} |")
    return "\n".join(rows) + "\n"


def values(schema: dict[str, Any]) -> str:
    """What a key may hold, in words."""
    if "anyOf" in schema:
        return " or ".join(values(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return f"list of {values(schema['items'])}"
    if schema["type"] == "object":
        return f"mapping of names to {values(schema['additionalProperties'])}"
    bounds = [f"{words} {schema[key]:,}" for key, words in BOUNDS.items() if key in schema]
    return " ".join([KINDS[schema["type"]], " and ".join(bounds)]).strip()


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")

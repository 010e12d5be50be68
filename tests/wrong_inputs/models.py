"""Models, heads, metrics and tuning methods that there are not, or that do not fit."""

from __future__ import annotations

from .case import RESIDUES, TRAIN, Case, cut, edit

NAMES = (
    Case(
        "an unknown head",
        f"train good.csv --head mpl {TRAIN}",
        (
            "Configuration: model.head: 'mpl' is not known; choose from mlp, linear, cnn, light_attention. Did "
            "you mean 'mlp'?"
        ),
    ),
    Case(
        "an unknown pooling",
        f"train good.csv --pooling sum {TRAIN}",
        "Configuration: model.pooling: 'sum' is not known; choose from mean, max, cls, attention.",
    ),
    Case(
        "cls pooling for T5",
        "train good.csv --pooling cls --model scratch:tiny-prott5 --max-steps 1 --out out",
        "model.pooling cls: ProtT5 (encoder) has no token for the whole sequence. Use mean.",
    ),
    Case(
        "a pooling head for residues",
        f"train r.csv --head light_attention --task token_classification {TRAIN}",
        "The head light_attention pools the sequence and cannot label residues. Use cnn, mlp or linear.",
        {"r.csv": RESIDUES},
    ),
    Case(
        "an unknown metric",
        f"train good.csv --set training.metric=acuracy {TRAIN}",
        "Unknown metric for seq_classification 'acuracy'. Known: ... Did you mean 'accuracy'?",
    ),
    Case(
        "a metric of another task",
        f"train good.csv --set training.metric=spearman {TRAIN}",
        "Unknown metric for seq_classification 'spearman'. Known: ...",
    ),
    Case(
        "an unknown tuning method",
        f"train good.csv --tune lroa {TRAIN}",
        "Unknown tuning method 'lroa'. Known: ... Did you mean 'lora'?",
    ),
    Case(
        "no blocks to tune",
        f"train good.csv --tune last-0 {TRAIN}",
        "Unknown tuning method 'last-0'. Known: ... Did you mean 'last-N'?",
    ),
    Case(
        "more blocks than the model has",
        f"train good.csv --tune last-99 {TRAIN}",
        "tuning.method last-99: the model has only 2 blocks.",
    ),
    Case(
        "adapters in more blocks than the model has",
        f"train good.csv --tune lora --set tuning.blocks=last-99 {TRAIN}",
        "tuning.blocks last-99: the model has only 2 blocks.",
    ),
    Case(
        "blocks in a form of their own",
        f"train good.csv --tune lora --set tuning.blocks=2 {TRAIN}",
        "Configuration: tuning.blocks: input should be a valid string (given: 2).",
    ),
    Case(
        "targets that match nothing",
        f"train good.csv --tune lora --set tuning.targets=[q_proj] {TRAIN}",
        "tuning.targets: no layer of this model is called 'q_proj'. Layers there are: dense, key, query, value.",
    ),
    Case(
        "an unknown scratch model",
        "train good.csv --model scratch:esm2-8n --out out",
        "Unknown scratch model 'esm2-8n'. Known: ... Did you mean 'esm2-8m'?",
    ),
    Case(
        "a built-in model that is not shipped",
        "train good.csv --model builtin:rna --out out",
        "Unknown built-in model 'rna'. Known: protein, dna. Did you mean 'dna'?",
    ),
    Case(
        "a short name with a slip",
        "train good.csv --model esm-8m --out out",
        (
            "Unknown model 'esm-8m'. Give a folder, a hub id (owner/name), scratch:NAME, or one of: ... Did you "
            "mean 'esm2-8m'?"
        ),
    ),
    Case(
        "a scratch name without scratch:",
        "train good.csv --model tiny-esm2 --out out",
        (
            "Unknown model 'tiny-esm2'. Give a folder, a hub id (owner/name), scratch:NAME, or one of: ... Did "
            "you mean 'scratch:tiny-esm2'?"
        ),
    ),
    Case(
        "a hub id without network",
        "train good.csv --model facebook/esm2_t6_8M_UR50D --out out",
        (
            "'facebook/esm2_t6_8M_UR50D' is not in the local cache and HF_HUB_OFFLINE is set. Unset it, or give a"
            " local folder."
        ),
    ),
    Case(
        "a hub id that cannot be one",
        "train good.csv --model 'facebook/esm 2' --out out",
        "'facebook/esm 2' is neither a folder nor a hub id (owner/name). See `plft models` for known names.",
    ),
    Case(
        "two revisions",
        "train good.csv --model facebook/esm2@main --set model.revision=v2 --out out",
        "Model 'facebook/esm2@main' names revision main, and the revision given is v2. Give only one.",
    ),
    Case(
        "a model folder that does not exist",
        "train good.csv --model ./model --out out",
        "'./model' is not a folder. Give one that holds config.json, a hub id or a known name.",
    ),
    Case(
        "a file as the model",
        "train good.csv --model good.csv --out out",
        "'good.csv' is not a folder. Give one that holds config.json, a hub id or a known name.",
    ),
    Case(
        "an empty model name",
        "train good.csv --model '' --out out",
        "Configuration: model.name must not be empty.",
    ),
    Case(
        "a model folder without config.json",
        "train good.csv --model no_config --out out",
        "no_config has no config.json, so it is not a transformers model. Give the folder that holds it.",
        needs=("no_config",),
    ),
    Case(
        "a model folder without a tokenizer",
        "train good.csv --model no_tokenizer --out out",
        (
            "no_tokenizer has no tokenizer (tokenizer.json, vocab.txt, vocab.json, spiece.model). Save one into "
            "the same folder."
        ),
        needs=("no_tokenizer",),
    ),
    Case(
        "a model that is a pickle",
        "train good.csv --model pickled --out out",
        (
            "pickled holds only pytorch_model.bin; weights are read from safetensors only, because a pickle can "
            "run code. Many repositories offer a conversion as a pull request: NAME@refs/pr/N. Or convert it with"
            " save_pretrained."
        ),
        needs=("pickled",),
    ),
    Case(
        "a model that brings code",
        "train good.csv --model with_code --out out",
        ("with_code runs its own Python code (modeling.Model). Read it, and if you trust it pass --trust-remote-code."),
        needs=("with_code",),
    ),
    Case(
        "an adapter as the model",
        "train good.csv --model only_an_adapter --out out",
        "only_an_adapter holds an adapter, not a model: give the model it was trained on, or the run folder.",
        needs=("only_an_adapter",),
    ),
    Case(
        "a broken config.json",
        "train good.csv --model model --out out",
        "model: config.json cannot be read (...). Copy the model again.",
        needs=("model",),
        breaks=cut("model/config.json"),
    ),
    Case(
        "a config.json of an unknown kind",
        "train good.csv --model model --out out",
        ("model: transformers 5.23.0 cannot use its config.json (...). Upgrade transformers or choose another model."),
        needs=("model",),
        breaks=edit("model/config.json", model_type="esm9"),
    ),
    Case(
        "a config.json without a kind",
        "train good.csv --model model --out out",
        "model: config.json does not say its model_type. Save the model with save_pretrained again.",
        needs=("model",),
        breaks=edit("model/config.json", model_type=None),
    ),
    Case(
        "a config.json with sizes that do not fit",
        "train good.csv --model model --max-steps 1 --out out",
        "model: no model can be built from its config.json (...). Copy the model again.",
        needs=("model",),
        breaks=edit("model/config.json", num_attention_heads=5),
    ),
    Case(
        "a config.json with a wrong size",
        "train good.csv --model model --max-steps 1 --out out",
        ("model: transformers 5.23.0 cannot use its config.json (...). Upgrade transformers or choose another model."),
        needs=("model",),
        breaks=edit("model/config.json", hidden_size="wide"),
    ),
    Case(
        "weights of another size",
        "train good.csv --model model --max-steps 1 --out out",
        (
            "model lacks weights, which would stay random: encoder.layer.2.LayerNorm.bias; "
            "encoder.layer.2.LayerNorm.weight; encoder.layer.2.attention.LayerNorm.bias (and 45 more). Copy it "
            "again."
        ),
        needs=("model",),
        breaks=edit("model/config.json", num_hidden_layers=5),
    ),
    Case(
        "weights of another width",
        "train good.csv --model model --max-steps 1 --out out",
        (
            "model: weight 'encoder.layer.0.intermediate.dense.bias' is [128], but its config.json says [48]. "
            "Weights and configuration do not belong together: copy the model again."
        ),
        needs=("model",),
        breaks=edit("model/config.json", intermediate_size=48),
    ),
    Case(
        "base weights cut short",
        "train good.csv --model model --max-steps 1 --out out",
        "model: its weights cannot be loaded (...). Copy the model again.",
        needs=("model",),
        breaks=cut("model/model.safetensors"),
    ),
    Case(
        "a damaged tokenizer",
        "train good.csv --model protbert --out out",
        "protbert: its tokenizer cannot be read (...). Copy the model again.",
        needs=("protbert",),
        breaks=cut("protbert/tokenizer.json"),
    ),
    Case(
        "embeddings of an unknown model",
        "embed esm2-9m good.csv -o e.csv",
        (
            "Unknown model 'esm2-9m'. Give a folder, a hub id (owner/name), scratch:NAME, or one of: ... Did you "
            "mean 'esm2-8m'?"
        ),
    ),
)

"""python -m adarank merge: the base with the adapter in its weights, as a plain Transformers model."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adarank.adapters.merge import merge
from adarank.adapters.saving import BOTTLENECK, load_adapter
from adarank.commands.folder import Opened, new_folder, open_folder
from adarank.errors import SettingError
from adarank.integrations.peft_import import from_peft

TASKS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
HEADS = ("classifier.weight", "score.weight", ".out_proj.weight")  # whose rows are the classes
TOKENIZER = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "preprocessor_config.json",
)


def merge_folder(folder: Path, out: Path, base: str | None = None) -> str:
    """Write OUT; returns the sentence that is printed. SettingError where the base is unknown, cannot be loaded, or
    is not the one the adapter was made for."""
    opened = open_folder(folder)
    if opened.description["kind"] == BOTTLENECK:
        raise SettingError(
            "bottleneck adapters cannot be merged, since a non-linearity stands between them and the weights"
        )
    base = base or (opened.description.get("base") or {}).get("name")
    if not base:
        raise SettingError(f"{folder} does not name the base that it adapts; give --base MODEL_FOLDER")
    with new_folder(out) as path:
        model = _base(opened, base)
        adapters = (from_peft if opened.peft else load_adapter)(model, opened.path)
        if adapters:
            merge(model)
        model.save_pretrained(path)
        for pattern in TOKENIZER:
            for file in Path(base).glob(pattern):
                shutil.copyfile(file, path / file.name)
    return f"{out}: {type(model).__name__} with {len(adapters)} adapters merged; load it with its from_pretrained"


def _base(opened: Opened, base: str) -> Any:
    """The base as the class that was trained, in its own dtype; what the checkpoint lacks must be in the adapter."""
    import transformers

    transformers.logging.set_verbosity_error()  # a fresh head is expected here
    transformers.logging.disable_progress_bar()
    trained = opened.description["trained"]
    classes = next((shape[0] for name, shape in trained.items() if name.endswith(HEADS)), None)
    labels = {} if classes is None else {"num_labels": classes}
    try:
        config = transformers.AutoConfig.from_pretrained(base)
        kind = _class(opened.description.get("base") or {}, config.to_dict())
        model, found = getattr(transformers, kind).from_pretrained(
            base, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **labels
        )
    except (OSError, ValueError, AttributeError, json.JSONDecodeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise SettingError(f"the base {base} cannot be loaded ({reason}); give --base MODEL_FOLDER") from None
    lacking = {
        name if isinstance(name, str) else name[0] for name in (*found["missing_keys"], *found["mismatched_keys"])
    }
    if unknown := sorted(lacking - trained.keys()):
        raise SettingError(
            f"the base {base} has no {unknown[0]} of {kind}'s shape, and the adapter holds none; give the base that it "
            "was trained on with --base MODEL_FOLDER"
        )
    return model


def _class(base: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The class of Transformers: the adapter's own, that of PEFT's task_type, or the checkpoint's."""
    task = TASKS.get(base.get("task") or "")
    kind = base.get("class") or task or next(iter(config.get("architectures") or ()), None)
    return str(kind or "AutoModel")

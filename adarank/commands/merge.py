"""adarank merge: the base with the adapter in its weights, as a plain Transformers model."""

import json
import shutil
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
    """Write OUT; returns the sentence to print. SettingError where the base cannot be loaded, or is not the adapter's."""
    opened = open_folder(folder)
    if opened.description["kind"] == BOTTLENECK:
        raise SettingError("bottleneck adapters cannot be merged, because they contain a non-linearity")
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
    """The base as the class that was trained, in its own dtype; the adapter must hold weights that the base lacks."""
    import transformers

    transformers.logging.set_verbosity_error()  # a fresh head is expected here
    transformers.logging.disable_progress_bar()
    trained = opened.description["trained"]
    classes = next((shape[0] for name, shape in trained.items() if name.endswith(HEADS)), None)
    labels = {} if classes is None else {"num_labels": classes}
    try:
        config = transformers.AutoConfig.from_pretrained(base)
        adapted = opened.description.get("base") or {}
        named = (adapted.get("class"), TASKS.get(adapted.get("task") or ""), *(config.architectures or ()), "AutoModel")
        model_class = next(filter(None, named))
        model, loading = getattr(transformers, model_class).from_pretrained(
            base, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **labels
        )
    except (OSError, ValueError, AttributeError, json.JSONDecodeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise SettingError(f"the base {base} cannot be loaded ({reason}); give --base MODEL_FOLDER") from None
    lacking = {
        name if isinstance(name, str) else name[0] for name in (*loading["missing_keys"], *loading["mismatched_keys"])
    }
    if unknown := sorted(lacking - trained.keys()):
        raise SettingError(
            f"the base {base} has no {unknown[0]} of the shape that {model_class} needs, and neither has the adapter; "
            "give the base that it was trained on with --base MODEL_FOLDER"
        )
    return model

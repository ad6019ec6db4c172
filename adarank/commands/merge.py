"""adarank merge: writes the base with the adapter merged into its weights as a plain Transformers model."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adarank.adapters.base import name_classes
from adarank.adapters.merge import merge
from adarank.adapters.saving import BOTTLENECK, load_adapter
from adarank.commands.folder import Opened, new_folder, open_folder
from adarank.errors import SettingError
from adarank.harness.models import name_padding
from adarank.integrations.peft_import import from_peft

TASKS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
HEADS = ("classifier.weight", "score.weight", ".out_proj.weight")  # their rows are the classes
PROCESSOR = (  # a base with one of these files has a tokenizer or an image processor
    *("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json"),
    *("preprocessor_config.json", "processor_config.json"),
)


def merge_folder(folder: Path, out: Path, base: str | None = None) -> str:
    """Write the merged model, its tokenizer or image processor and a run's class names to OUT, so that OUT is
    self-contained, and return the sentence to print. Raises SettingError if the base cannot be loaded or is not the
    adapter's."""
    opened = open_folder(folder)
    if opened.description["kind"] == BOTTLENECK:
        raise SettingError("bottleneck adapters cannot be merged, because they contain a non-linearity")
    base = base or (opened.description.get("base") or {}).get("name")
    if not base:
        raise SettingError(f"{folder} does not name the base that it adapts; give --base MODEL_FOLDER")
    with new_folder(out) as path:
        model, processor = _base(opened, base)
        adapters = (from_peft if opened.peft else load_adapter)(model.eval(), opened.path)
        inputs = _probe_inputs(model)
        before = _outputs(model, inputs)
        if adapters:
            merge(model)
        change = (_outputs(model, inputs) - before).abs().max()
        if opened.summary and hasattr(processor, "pad_token"):
            name_padding(model, processor)  # as in training
        name_classes(model, opened.summary.get("labels") or ())
        for part in (model, processor):
            if part is not None:
                part.save_pretrained(path)
    return (
        f"{out}: {type(model).__name__} with {len(adapters)} adapters merged; load it with its from_pretrained. On a "
        f"probe input merging changed the outputs by at most {change:.1e} (the largest is {before.abs().max():.1e})"
    )


def _probe_inputs(model: Any) -> dict[str, Tensor]:
    """One input row for the model: an image, or token ids that end with its end token."""
    config = model.config
    if model.main_input_name == "pixel_values":
        sides = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        shape = (1, getattr(config, "num_channels", 3), *sides)
        return {"pixel_values": torch.linspace(-1, 1, math.prod(shape)).view(shape).to(model.dtype)}
    text = config.get_text_config()
    ids = torch.arange(4, 20).remainder(text.vocab_size).unsqueeze(0)
    end = text.eos_token_id
    if end is not None:
        ids[0, -1] = end[0] if isinstance(end, list) else end
    return {"input_ids": ids, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {})}


@torch.no_grad()
def _outputs(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits, or else the model's first output, in fp32."""
    first: Tensor = model(**inputs)[0]
    return first.float()


def _base(opened: Opened, base: str) -> tuple[Any, Any]:
    """The base as the class that was trained, in its own dtype, and its tokenizer or other processor, or None if it has
    none. Weights that the base lacks must come with the adapter."""
    import transformers

    transformers.logging.set_verbosity_error()  # a fresh head is expected here
    transformers.logging.disable_progress_bar()
    no_code = {"trust_remote_code": False}  # run no Python from the base's own repository
    trained = opened.description["trained"]
    classes = next((shape[0] for name, shape in trained.items() if name.endswith(HEADS)), None)
    labels = {} if classes is None else {"num_labels": classes}
    try:
        config = transformers.AutoConfig.from_pretrained(base, **no_code)
        adapted = opened.description.get("base") or {}
        named = (adapted.get("class"), TASKS.get(adapted.get("task") or ""), *(config.architectures or ()), "AutoModel")
        model_class = next(filter(None, named))
        model, loading = getattr(transformers, model_class).from_pretrained(
            base, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **labels, **no_code
        )
        quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
        files = (transformers.utils.cached_file(base, name, **quiet) for name in PROCESSOR)
        processor = transformers.AutoProcessor.from_pretrained(base, **no_code) if any(files) else None
    except (ImportError, OSError, ValueError, AttributeError, json.JSONDecodeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise SettingError(f"the base {base} cannot be loaded ({reason}); give --base MODEL_FOLDER") from None
    lacking = {
        name if isinstance(name, str) else name[0] for name in (*loading["missing_keys"], *loading["mismatched_keys"])
    }
    if unknown := sorted(lacking - trained.keys()):
        raise SettingError(
            f"neither the base {base} nor the adapter has {unknown[0]} in the shape that {model_class} needs; give the "
            "base that the adapter was trained on with --base MODEL_FOLDER"
        )
    return model, processor

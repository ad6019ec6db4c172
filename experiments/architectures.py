"""In how many architectures `targets` finds the right modules: every text and vision model of the installed
Transformers.

    python experiments/architectures.py --json experiments/results/architectures.json

Builds each model from its config without weights (on the meta device, four layers where the config says how many),
resolves targets=qkv, attention and all, and judges what was found: against a list that was written by hand
(architectures.yaml) or, for models that are not in it, by rules that look at other things than the resolver does
(`by_rule`). Nothing is downloaded. Names on the command line choose single architectures.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adarank.errors import SettingError
from adarank.runs.modules import place_of
from adarank.targets import find_targets, recognise_targets
from experiments.bench.pairs import parser, write

BY_HAND = Path(__file__).with_suffix(".yaml")
SHORTHANDS = ("qkv", "attention", "all")
# A model belongs to the first of these that it is listed in: group, Transformers' mapping, and what builds it.
GROUPS = (
    ("causal_lm", "MODEL_FOR_CAUSAL_LM", "AutoModelForCausalLM"),
    ("encoder_decoder", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM", "AutoModelForSeq2SeqLM"),
    ("encoder_decoder", "MODEL_FOR_SPEECH_SEQ_2_SEQ", "AutoModelForSpeechSeq2Seq"),
    ("encoder", "MODEL_FOR_MASKED_LM", "AutoModelForMaskedLM"),
    ("encoder", "MODEL_FOR_TEXT_ENCODING", "AutoModelForTextEncoding"),
    ("encoder", "MODEL_FOR_SEQUENCE_CLASSIFICATION", "AutoModelForSequenceClassification"),
    ("vision", "MODEL_FOR_IMAGE_CLASSIFICATION", "AutoModelForImageClassification"),
    ("vision", "MODEL_FOR_IMAGE", "AutoModel"),
    ("vision_and_text", "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION", "AutoModelForZeroShotImageClassification"),
    ("vision_and_text", "MODEL_FOR_IMAGE_TEXT_TO_TEXT", "AutoModelForImageTextToText"),
)
LAYERS = (
    "num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers",
)  # fmt: skip
PARTS = ("text_config", "vision_config", "audio_config", "qformer_config", "encoder", "decoder")
# Settings without which a config's own defaults build no model, or one without the attention layers that all have.
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, "num_hidden_layers": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "reformer": {"is_decoder": True},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "ministral": {"head_dim": 128},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 48},
}


def architectures() -> dict[str, tuple[str, str]]:
    """{model_type: (group, auto class)} of every text and vision architecture that Transformers lists."""
    from transformers.models.auto import modeling_auto

    found: dict[str, tuple[str, str]] = {}
    for group, mapping, auto in GROUPS:
        for name in getattr(modeling_auto, f"{mapping}_MAPPING_NAMES"):
            found.setdefault(name, (group, auto))
    return found


def small_config(name: str, settings: Mapping[str, Any]) -> Any:
    """A config of four layers where its defaults allow for that; parts of composed models likewise."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(name, **settings)
    layers = {key: 4 for key in LAYERS if isinstance(getattr(config, key, None), int)}
    try:
        config = AutoConfig.for_model(name, **layers, **settings)
    except (ValueError, TypeError, AttributeError):  # a list of four stages, say
        layers = {}
    for part in PARTS:
        known: Any = getattr(config, part, None)
        if getattr(known, "model_type", ""):
            setattr(config, part, small_config(known.model_type, {}))
    return config


def build(name: str, auto: str) -> nn.Module:
    """The model on the meta device. Raises whatever Transformers does where its config builds none."""
    import transformers
    from transformers import AutoConfig

    settings = SETTINGS.get(name, {})

    def make(config: Any) -> nn.Module:
        config.architectures = config.architectures or []  # DeiT's chooses one of two classes by it
        with torch.device("meta"):
            return getattr(transformers, auto).from_config(config)

    try:
        return make(small_config(name, settings))
    except Exception:  # four layers do not suit every config; what is wrong with its defaults is the caller's to see
        return make(AutoConfig.for_model(name, **settings))


def linears(model: nn.Module) -> list[str]:
    """Names of the linears with a block's number in their name, whatever they are for."""
    from transformers.pytorch_utils import Conv1D

    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and place_of(n).block is not None]


def by_hand(model: nn.Module, found: Mapping[str, list[str]], truth: Mapping[str, list[str]]) -> dict[str, str]:
    """{shorthand: what is wrong}. truth: kinds of linears (`place_of`) that are q, k and v, the output, and the
    rest."""
    wrong = {}
    for shorthand, parts in (("qkv", ["qkv"]), ("attention", ["qkv", "o"]), ("all", ["qkv", "o", "rest"])):
        kinds = {kind for part in parts for kind in truth.get(part, [])}
        expected = {name for name in linears(model) if place_of(name).kind in kinds}
        lacking = kinds - {place_of(name).kind for name in expected}
        if different := {*found[shorthand]} ^ expected or lacking:
            wrong[shorthand] = f"differs from the list: {', '.join(sorted(map(_kind, different))[:6])}"
    return wrong


def by_rule(model: nn.Module, found: Mapping[str, list[str]]) -> dict[str, str]:
    """{shorthand: what is wrong}, by other things than the resolver's.

    Blocks of a stack that hold the same linears must have the same of them selected. Every module of a class called
    attention with three linears must have some selected. q, k and v must be as wide as heads × head dimension, an
    output projection must exist in every attention and be as wide at its entrance. targets=all must be every linear of
    the blocks.
    """
    wrong = {}
    for shorthand in SHORTHANDS:
        if reason := uneven(model, found[shorthand]):
            wrong[shorthand] = reason
    modules = dict(model.named_modules())
    output = [name for name in found["attention"] if name not in found["qkv"]]
    for name in found["qkv"]:
        if reason := wrong_width(model, name):
            wrong.setdefault("qkv", reason)
    for name in output:
        if reason := wrong_width(model, name, entrance=True):
            wrong.setdefault("attention", reason)
    if not output:
        wrong["attention"] = "no output projection"
    beside = Counter(attention_of(modules, name) for name in output)
    for holder in {attention_of(modules, name) for name in found["qkv"]} - beside.keys():
        wrong.setdefault("attention", f"no output projection in {_kind(holder)}")
    parents = Counter(name.rpartition(".")[0] for name in linears(model))
    for name in parents.keys() - {name.rpartition(".")[0] for name in found["attention"]}:
        if parents[name] >= 3 and "attention" in type(modules[name]).__name__.lower():
            wrong.setdefault("attention", f"leaves out {_kind(name)}")
    left_out = {*linears(model)} - {*found["all"]}
    if left_out or {*found["attention"]} - {*found["all"]}:
        wrong["all"] = f"leaves out {', '.join(sorted(map(_kind, left_out))[:6])}"
    return wrong


def uneven(model: nn.Module, selected: Iterable[str]) -> str:
    """Two blocks of one stack that hold the same linears, with others of them selected; "" for none."""
    chosen = {*selected}
    blocks: dict[tuple[str, int | None], list[str]] = {}
    for name in linears(model):
        place = place_of(name)
        blocks.setdefault((place.stack, place.block), []).append(name)
    seen: dict[Any, set[str]] = {}
    for (stack, _), names in blocks.items():
        key = stack, tuple(place_of(name).path for name in names)
        here = {place_of(name).path for name in names if name in chosen}
        if seen.setdefault(key, here) != here:
            return f"differs between blocks of {stack}"
    return ""


def attention_of(modules: Mapping[str, nn.Module], name: str) -> str:
    """The outermost module that holds `name`, inside its block, and whose class is called an attention; else its
    parent."""
    place = place_of(name)
    prefix = f"{place.stack}.{place.block}"
    parts = place.path.split(".")[:-1]
    for end in range(1, len(parts) + 1):
        outer = ".".join([prefix, *parts[:end]])
        if "attention" in type(modules[outer]).__name__.lower() or "attn" in parts[end - 1].lower():
            return outer
    return name.rpartition(".")[0]


HEADS = (
    "num_attention_heads", "num_heads", "n_heads", "n_head", "num_key_value_heads", "num_kv_heads",
    "encoder_attention_heads", "decoder_attention_heads", "encoder_num_attention_heads",
    "decoder_num_attention_heads", "swa_num_attention_heads", "swa_num_key_value_heads", "linear_num_key_heads",
    "linear_num_value_heads", "num_query_heads", "num_attn_heads",
)  # fmt: skip
HEAD_DIM = (
    "head_dim", "attention_head_size", "d_kv", "d_head", "dim_per_head", "key_value_proj_dim", "qk_head_dim", "v_head_dim",
    "head_size", "kv_channels", "swa_head_dim", "linear_key_head_dim", "linear_value_head_dim", "global_head_dim",
)  # fmt: skip

RANK = ("q_lora_rank", "kv_lora_rank")  # of projections in two steps, as in DeepSeek's
ROTARY = ("qk_rope_head_dim", "head_dim")  # a key that all heads share comes with the first of them
WIDTH = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "all_head_size", "inner_dim")


def stated(model: nn.Module, holder: nn.Module, names: Iterable[str]) -> set[int]:
    """Whole numbers that an attention, its config, or the model's config with its parts has under `names`."""
    config: Any = model.config
    sources = [holder, getattr(holder, "config", None), config, *(getattr(config, part, None) for part in PARTS)]
    found = set()
    for source in sources:
        values = vars(source) if hasattr(source, "__dict__") else {}
        for value in (values.get(name) for name in names):
            found |= {
                v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int) and v > 0
            }
    return found


def wrong_width(model: nn.Module, name: str, entrance: bool = False) -> str:
    """Whether a projection's output is no multiple of heads and head dimension, for one of q, k and v, or for those of
    one matrix; "" if it is one. entrance: its input, which an output projection has in that width."""
    layer: Any = model.get_submodule(name)
    wide, narrow = layer.weight.shape[::-1] if type(layer).__name__ == "Conv1D" else layer.weight.shape
    if entrance:
        wide, narrow = narrow, wide
    holder = model.get_submodule(name.removesuffix(".linear").rpartition(".")[0])
    heads, sizes = stated(model, holder, HEADS), stated(model, holder, HEAD_DIM)
    without_positions = stated(model, holder, ("qk_nope_head_dim",))  # of a key that comes in one matrix with its value
    sizes |= {key + value for key in without_positions for value in stated(model, holder, ("v_head_dim",))}
    for width in stated(model, holder, WIDTH) | {narrow}:
        sizes |= {width // n for n in heads if width % n == 0}
    single = {n * size for n in heads for size in sizes}
    shared = {2 * one for one in single}  # k and v, or a query and its gate
    ranks = stated(model, holder, RANK)
    narrowed = ranks | {rank + size for rank in ranks for size in stated(model, holder, ROTARY)}
    if wide in single | shared | narrowed or (not entrance and any(wide - q in shared for q in single)):
        return ""
    return f"{_kind(name)} is {wide} wide, which is no multiple of heads and head dimension"


def _kind(name: str) -> str:
    return place_of(name).kind


def resolve(model: nn.Module, name: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What each shorthand selects, and the sentences of those that are refused."""
    found: dict[str, list[str]] = {}
    refused = {}
    for shorthand in SHORTHANDS:
        try:
            wanted = "all-linear" if shorthand == "all" else recognise_targets(model, shorthand, name)
            found[shorthand] = find_targets(model, wanted)
        except SettingError as error:
            refused[shorthand] = str(error)
    return found, refused


def parts(found: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The kinds of modules that are q, k and v, the output projection, and the rest."""
    qkv, attention, every = (list(dict.fromkeys(map(_kind, found.get(shorthand, [])))) for shorthand in SHORTHANDS)
    output = [kind for kind in attention if kind not in qkv]
    return {"qkv": qkv, "o": output, "rest": [kind for kind in every if kind not in attention]}


def judge(name: str, group: str, auto: str, truth: Mapping[str, Any]) -> dict[str, Any]:
    """One architecture: what was found (kinds of modules), how it was judged, and what is wrong."""
    entry: dict[str, Any] = {"group": group, "state": "not built", "judged": None}
    try:
        model = build(name, auto)
    except Exception as error:
        reason = " ".join(str(error).split())
        return {**entry, "reason": f"{type(error).__name__}: {reason[:120]}"}
    found, refused = resolve(model, name)
    entry |= {
        "class": type(model).__name__,
        "judged": "by hand" if name in truth["models"] else "by rule",
        "found": parts(found),
    }
    expected = truth["models"].get(name)
    if refused.keys() & {"qkv", "attention"}:
        free = any("has no attention" in sentence for sentence in refused.values())
        state = "attention-free" if free else "refused"
        wrong = {} if expected in (None, state) else dict.fromkeys(refused, "refused")
        return {**entry, "state": state, "refused": refused, "wrong": wrong}
    if expected is None:
        wrong = by_rule(model, found)
    elif isinstance(expected, str) and expected in ("refused", "attention-free"):
        wrong = dict.fromkeys(SHORTHANDS, f"should be {expected}")
    else:
        families = [truth["families"][family] for family in ([expected] if isinstance(expected, str) else expected)]
        wrong = by_hand(model, found, {k: [x for f in families for x in f.get(k, [])] for k in ("qkv", "o", "rest")})
    return {**entry, "state": "wrong" if wrong else "correct", "wrong": wrong}


def summary(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per group, and for causal LMs and encoders together, how many there are of each state, and the share of correct
    ones among those with attention."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries.values():
        groups.setdefault(entry["group"], []).append(entry)
        if entry["group"] in ("causal_lm", "encoder"):
            groups.setdefault("causal_lm and encoder", []).append(entry)
    table = {}
    for group, members in groups.items():
        states = Counter(entry["state"] for entry in members)
        with_attention = states["correct"] + states["wrong"] + states["refused"]
        share = round(states["correct"] / with_attention, 4) if with_attention else None
        hand = sum(entry["judged"] == "by hand" for entry in members)
        table[group] = {**dict(sorted(states.items())), "by hand": hand, "correct of those with attention": share}
    return table


def measure(names: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """{model_type: what was found and how it was judged}, of all architectures or of those named."""
    import transformers

    transformers.logging.set_verbosity_error()
    truth = yaml.safe_load(BY_HAND.read_text(encoding="utf-8"))
    known = architectures()
    chosen = [*names] or list(known)
    if unknown := [name for name in chosen if name not in known]:
        raise SettingError(f"{unknown[0]} is not a text or vision architecture of this version of Transformers")
    return {name: judge(name, *known[name], truth) for name in chosen}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("names", nargs="*", help="architectures (Transformers' model_type); none: all")
    arguments = options.parse_args()
    try:
        entries = measure(arguments.names)
    except SettingError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    for name, entry in entries.items():
        if arguments.names or entry["state"] in ("wrong", "refused", "not built"):
            more = entry.get("reason") or entry.get("wrong") or "; ".join(entry.get("refused", {}).values())
            print(f"{name} ({entry['group']}): {entry['state']}, {more or entry['found']}")
    found = summary(entries)
    for group, counts in found.items():
        print(f"{group}: {', '.join(f'{key} {value}' for key, value in counts.items())}")
    write(arguments, [], summary=found, architectures=entries)


if __name__ == "__main__":
    main()

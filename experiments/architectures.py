"""Counts the architectures in which `targets` finds the right modules, over every text and vision model of the
installed Transformers.

    python experiments/architectures.py --json experiments/results/architectures.json

It builds each model from its config without weights (on the meta device, with four layers if the config sets their
number), resolves targets=qkv, attention and all, and judges the result against a hand-written list (architectures.yaml)
or, for models that are not in it, by rules that use different evidence than the resolver (`by_rule`). Nothing is
downloaded. Names on the command line select single architectures.
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
# A model belongs to the first of these that lists it: group, Transformers' mapping, and the class that builds it.
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
# Settings without which a config's own defaults build no model, or one that lacks the usual attention layers.
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
    """A config with four layers if its defaults allow that; the same for the parts of composed models."""
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
    """The model on the meta device. Raises any error of Transformers if its config builds no model."""
    import transformers
    from transformers import AutoConfig

    settings = SETTINGS.get(name, {})

    def make(config: Any) -> nn.Module:
        config.architectures = config.architectures or []  # DeiT's config selects one of two classes with it
        with torch.device("meta"):
            return getattr(transformers, auto).from_config(config)

    try:
        return make(small_config(name, settings))
    except Exception:  # four layers do not suit every config; errors of its defaults reach the caller
        return make(AutoConfig.for_model(name, **settings))


def linears(model: nn.Module) -> list[str]:
    """Names of the linears with a block's number in their name, whatever their purpose."""
    from transformers.pytorch_utils import Conv1D

    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and place_of(n).block is not None]


def by_hand(model: nn.Module, found: Mapping[str, list[str]], truth: Mapping[str, list[str]]) -> dict[str, str]:
    """{shorthand: the error}. truth: kinds of linears (`place_of`) that are q, k and v, the output, and the rest."""
    wrong = {}
    for shorthand, parts in (("qkv", ["qkv"]), ("attention", ["qkv", "o"]), ("all", ["qkv", "o", "rest"])):
        kinds = {kind for part in parts for kind in truth.get(part, [])}
        expected = {name for name in linears(model) if place_of(name).kind in kinds}
        lacking = kinds - {place_of(name).kind for name in expected}
        if different := {*found[shorthand]} ^ expected or lacking:
            wrong[shorthand] = f"differs from the list: {', '.join(sorted(map(_kind, different))[:6])}"
    return wrong


def by_rule(model: nn.Module, found: Mapping[str, list[str]]) -> dict[str, str]:
    """{shorthand: the error}, based on different evidence than the resolver's.

    In blocks of a stack with the same linears, the same linears must be selected. In every module with three linears
    whose class is called attention, some must be selected. q, k and v must be as wide as heads × head dimension; every
    attention must have an output projection with that input width. targets=all must select every linear in the blocks.
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
    """A sentence on two blocks of one stack with the same linears but different selections; "" if there are none."""
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
    """The outermost module around `name`, inside its block, whose class is called attention; else its parent."""
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
    "head_dim", "attention_head_size", "d_kv", "d_head", "dim_per_head", "key_value_proj_dim", "qk_head_dim",
    "v_head_dim", "head_size", "kv_channels", "swa_head_dim", "linear_key_head_dim", "linear_value_head_dim",
    "global_head_dim",
)  # fmt: skip

RANK = ("q_lora_rank", "kv_lora_rank")  # ranks of projections in two steps, as in DeepSeek's models
ROTARY = ("qk_rope_head_dim", "head_dim")  # the first of them for a key that all heads share
WIDTH = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "all_head_size", "inner_dim")


def stated(model: nn.Module, holder: nn.Module, names: Iterable[str]) -> set[int]:
    """The whole numbers under `names` in an attention, its config, or the model's config with its parts."""
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
    """A sentence if a projection's output width is not a multiple of heads and head dimension, for one of q, k and v or
    for those in one matrix; "" if it is. entrance: check the input width instead, as for an output projection."""
    layer: Any = model.get_submodule(name)
    wide, narrow = layer.weight.shape[::-1] if type(layer).__name__ == "Conv1D" else layer.weight.shape
    if entrance:
        wide, narrow = narrow, wide
    holder = model.get_submodule(name.removesuffix(".linear").rpartition(".")[0])
    heads, sizes = stated(model, holder, HEADS), stated(model, holder, HEAD_DIM)
    without_positions = stated(model, holder, ("qk_nope_head_dim",))  # for a key in the same matrix as its value
    sizes |= {key + value for key in without_positions for value in stated(model, holder, ("v_head_dim",))}
    for width in stated(model, holder, WIDTH) | {narrow}:
        sizes |= {width // n for n in heads if width % n == 0}
    single = {n * size for n in heads for size in sizes}
    shared = {2 * one for one in single}  # k and v, or a query and its gate
    ranks = stated(model, holder, RANK)
    narrowed = ranks | {rank + size for rank in ranks for size in stated(model, holder, ROTARY)}
    if wide in single | shared | narrowed or (not entrance and any(wide - q in shared for q in single)):
        return ""
    return f"{_kind(name)} is {wide} wide, which is not a multiple of heads and head dimension"


def _kind(name: str) -> str:
    return place_of(name).kind


def resolve(model: nn.Module, name: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The modules that each shorthand selects, and the messages of those that are refused."""
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
    """One architecture: the kinds of modules found, how they were judged, and the errors."""
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
    """The number of architectures in each state, per group and for causal LMs and encoders together, and the share of
    correct ones among those with attention."""
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
    """{model_type: the findings and how they were judged}, for all architectures or those named."""
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
    options.add_argument("names", nargs="*", help="architectures (Transformers' model_type); default: all")
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

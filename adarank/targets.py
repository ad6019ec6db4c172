"""Module names: which layers `targets` selects, where they are, and their names in each architecture."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from adarank.adapters.experts import layer_at, named_layers
from adarank.adapters.layers import (
    CONV1D,
    LAYER_TYPES,
    LINEAR,
    LINEAR_4BIT,
    Expert,
    known_layer,
    layer_of,
    refusal,
    storage_of,
)
from adarank.errors import SettingError
from adarank.runs.modules import place_of

Targets = str | Sequence[str]

# The meaning of `targets` in architectures (Transformers' model_type) that already had named runs when `projections`
# was added: regular expressions for the whole names of q, k and v (with {0} for the letter, {1} for the word), of the
# attention's output projection and of the MLP. They enter a run's identity, so existing entries never change; a new
# architecture needs an entry only if its projections are not recognised.
_BERT = (
    r".*\.attention\.self\.{1}",
    r".*\.attention\.output\.dense",
    r".*\.layer\.\d+\.(intermediate|output)\.dense",
)
_LLAMA = (r".*\.self_attn\.{0}_proj", r".*\.self_attn\.o_proj", r".*\.mlp\.(gate|up|down)_proj")
_BART = (
    r".*\.(self|encoder)_attn\.{0}_proj",
    r".*\.(self|encoder)_attn\.out_proj",
    r".*\.layers\.\d+\.fc[12]",
)
_T5 = (
    r".*\.(Self|EncDec)Attention\.{0}",
    r".*\.(Self|EncDec)Attention\.o",
    r".*\.DenseReluDense\.w(i|i_0|i_1|o)",
)
_LIKE_BERT = ("bert", "roberta", "xlm-roberta", "electra")
_LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
_SEPARATE = {
    **dict.fromkeys(_LIKE_BERT, _BERT),
    "deberta-v2": (r".*\.attention\.self\.{1}_proj", *_BERT[1:]),
    "distilbert": (r".*\.attention\.{0}_lin", r".*\.attention\.out_lin", r".*\.ffn\.lin[12]"),
    **dict.fromkeys(_LIKE_LLAMA, _LLAMA),
    **dict.fromkeys(("bart", "mbart"), _BART),
    **dict.fromkeys(("t5", "mt5"), _T5),
}
_IN_ONE_MATRIX = {  # q, k and v
    "gpt2": (r".*\.attn\.c_attn", r".*\.attn\.c_proj", r".*\.mlp\.c_(fc|proj)"),
    "gpt_neox": (r".*\.attention\.query_key_value", r".*\.attention\.dense", r".*\.mlp\.dense_(h_to_4h|4h_to_h)"),
    "modernbert": (r".*\.attn\.Wqkv", r".*\.attn\.Wo", r".*\.mlp\.W[io]"),
}
_PARTS: dict[str, dict[str, str]] = {
    name: {**{word[0]: qkv.format(word[0], word) for word in ("query", "key", "value")}, "o": o, "mlp": mlp}
    for name, (qkv, o, mlp) in _SEPARATE.items()
} | {name: dict(zip(("qkv", "o", "mlp"), parts, strict=True)) for name, parts in _IN_ONE_MATRIX.items()}
# The positions of bottlenecks (`adarank.bottlenecks`). houlsby: after the output projections of attention and FFN;
# pfeiffer: around the LayerNorm after the FFN or, in pre-norm models, which have none there, after the FFN's output
# projection.
_PLACES: dict[str, dict[str, str]] = {
    name: {"houlsby": houlsby, "pfeiffer": pfeiffer}
    for names, houlsby, pfeiffer in (
        (
            (*_LIKE_BERT, "deberta-v2"),
            r".*\.layer\.\d+\.(attention\.)?output\.dense",
            r".*\.layer\.\d+\.output\.LayerNorm",
        ),
        (("distilbert",), r".*\.(attention\.out_lin|ffn\.lin2)", r".*\.output_layer_norm"),
        (_LIKE_LLAMA, r".*\.(self_attn\.o_proj|mlp\.down_proj)", r".*\.mlp\.down_proj"),
        (("gpt2",), r".*\.(attn|mlp)\.c_proj", r".*\.mlp\.c_proj"),
        (("t5",), r".*\.(SelfAttention\.o|DenseReluDense\.wo)", r".*\.DenseReluDense\.wo"),
        (("vit",), r".*\.(attention\.o_proj|mlp\.fc2)", r".*\.mlp\.fc2"),
    )
    for name in names
}
EXPERTS = "experts"  # the one word that selects experts stacked in one tensor, also in `adarank.adapt`
TARGETS = {"qv": "qv", "qkv": "qkv", "attention": "qkvo", "mlp": ("mlp",), "all": (*"qkvo", "mlp")}

# The names of projections in published models (`projections`); a name's words are separated by underscores.
_OF_QKV = re.compile(r"w?(q?k?v?)z?")  # q, Wq, kv, qkv, Wqkv; z: a gate in the same matrix (Qwen3-Next)
_LETTER = {"query": "q", "queries": "q", "key": "k", "keys": "k", "value": "v", "values": "v"}
_OF_POSITIONS = {"pos", "position", "relative", "rel"}  # a key for relative positions is not the tokens' key
_OUTPUT = {"o", "wo", "out", "output"}
_OUTPUT_NAMES = {"dense", "proj", "c_proj", "post_proj", "projection", "projection_layer"}
_NO_OUTPUT = {"gate", "ogate", "conv"}
_MLP = re.compile(
    r"\w*mlps?|ffns?|ff\d?|feed_?forward\w*|\w*densereludense|\w*experts?|intermediate\w*|output\w*|"
    r"fc_?(\d|in|out)|ffn_output|(gate_|up_|down_)+proj"
)
_ROUTER = re.compile(r"\w*router|classifier|gate|\w*expert_gate")


class Architecture(Protocol):
    """The required attributes of a base model: Transformers' model_type, the module names of its own shorthands, and a
    function that builds the model without weights (on the meta device) for a type of task."""

    @property
    def architecture(self) -> str: ...

    @property
    def targets(self) -> Mapping[str, list[str]] | None: ...

    @property
    def skeleton(self) -> Callable[[Any], nn.Module] | None: ...


def resolve_targets(
    base: Architecture, targets: str, target_modules: Sequence[str] | None = None, task_type: Any = None
) -> str | list[str]:
    """The argument of `adarank.adapt` for targets=qv|qkv|attention|mlp|all|experts; target_modules take precedence.

    A model's base.targets, if any, take precedence over those of the architecture. Architectures with earlier runs have
    their expressions in a table; in any other, the projections are recognised in `base.skeleton(task_type)`. Raises
    SettingError for a shorthand that is undefined or cannot be adapted.
    """
    if target_modules:
        return list(target_modules)
    if targets == EXPERTS:
        return EXPERTS
    if base.targets is not None:
        if targets not in base.targets:
            raise SettingError(f"targets must be one of model.targets: {', '.join(base.targets)} (got {targets})")
        return list(base.targets[targets])
    if (parts := _PARTS.get(base.architecture)) is not None:
        return _of_parts(parts, targets, base.architecture)
    if targets == "all":
        return "all-linear"
    if base.skeleton is None:
        raise SettingError(
            f"targets={targets} is not defined for the architecture {base.architecture}; use targets=all, "
            "target_modules=[…], or model.targets in the model's YAML file"
        )
    return recognise_targets(base.skeleton(task_type), targets, base.architecture)


def recognise_targets(model: nn.Module, targets: str, architecture: str = "of this model") -> str:
    """The regular expression for targets=qv|qkv|attention|mlp in `model` (see `projections`).

    Numbers in names stand for any number, so that the expression does not depend on the depth. Raises SettingError if
    the projections are not recognised, if the model has no attention, or if they share a matrix with others.
    """
    found = projections(model)
    if all(any(part in _held(key) for key in found) for part in TARGETS[targets]):
        return _of_parts({key: _expression(names) for key, names in found.items()}, targets, architecture)
    kinds = list(dict.fromkeys(place_of(name).kind for name in _named_layers(model)))
    said = ", ".join(kinds[:16]) + f" and {len(kinds) - 16} more" * (len(kinds) > 16) or "no layers with a weight"
    if targets != "mlp" and _attention_free(model):
        why = f"cannot be adapted in the architecture {architecture}, which has no attention"
    else:
        why = f"is not recognised in the architecture {architecture}"
    raise SettingError(
        f"targets={targets} {why}; use targets=all, or target_modules=[…] with names of its blocks ({said})"
    )


def _of_parts(parts: Mapping[str, str], targets: str, architecture: str) -> str:
    """The expressions in `parts`, {projections in a matrix: expression}, that make up a shorthand, joined by |."""
    wanted = set(TARGETS[targets])
    for key, expression in parts.items():
        held = _held(key)
        if held & wanted and not held <= wanted:
            matrix = expression.rpartition(".")[2]
            shared = f"q and v lie in one matrix, {matrix}, together with k"
            if len(held) == 2:
                shared = f"{' and '.join(sorted(held))} lie in one matrix, {matrix}"
            raise SettingError(
                f"targets={targets} cannot be adapted in the architecture {architecture}, where {shared}; use "
                "targets=qkv, which adapts that matrix"
            )
    return "|".join(expression for key, expression in parts.items() if _held(key) <= wanted)


def _held(part: str) -> set[str]:
    """The projections in a part of `projections`: k and v for "kv", "mlp" for itself."""
    return {part} if part == "mlp" else set(part)


def _expression(names: Iterable[str]) -> str:
    """A regular expression for whole names in which numbers match any number."""
    kinds = (r"\.".join(r"\d+" if part.isdecimal() else re.escape(part) for part in name.split(".")) for name in names)
    return "|".join(sorted({*kinds}))


def _words(name: str) -> list[str]:
    return name.lower().split("_")


def _yields(name: str) -> str:
    """Which of q, k and v a projection with this name computes: "q", "kv", …; "" for none."""
    words = _words(name)
    if name == "c_attn":  # GPT-2's
        return "qkv"
    if _OF_POSITIONS & {*words}:
        return ""
    letters = "".join(match[1] if (match := _OF_QKV.fullmatch(word)) else _LETTER.get(word, "") for word in words)
    return "".join(letter for letter in "qkv" if letter in letters)


def _is_output(name: str) -> bool:
    """Whether this may be the name of an attention's output projection."""
    return name in _OUTPUT_NAMES or bool(_OUTPUT & {*_words(name)} and not _NO_OUTPUT & {*_words(name)})


def projections(model: nn.Module) -> dict[str, list[str]]:
    """The projections of a model's blocks, {projections in a matrix: module names}, recognised by names and positions.

    "q", "k" and "v" or, if one matrix computes several, "kv", "qkv", …: linears with such names (q_proj, query, Wq,
    q_lin, to_q, qkv_proj, …) in a module that has all three, and in every module of its class; both linears of a
    projection in two steps, such as DeepSeek's. "o": linears with an output's name in the same module or, as in BERT,
    next to it. "mlp": the linears of feed-forward layers, without routers. Projections that are not found have no
    entry.
    """
    modules = dict(model.named_modules())
    elements = {child for stack in modules.values() if isinstance(stack, nn.ModuleList) for child in stack}
    linears = block_linears(model)
    # The parent and the name of each linear; Moshi's q_proj.linear counts as q_proj.
    hangs = {name: name.removesuffix(".linear").rpartition(".")[::2] for name in linears}
    yields = {name: _yields(leaf) for name, (_, leaf) in hangs.items()}
    for name, (owner, leaf) in hangs.items():
        d_in, d_out = sides(model, name)
        if leaf == "in_proj" and "attention" in owner and d_out == 3 * d_in:  # DeBERTa's
            yields[name] = "qkv"

    held: dict[str, set[str]] = {}
    for name, (owner, _) in hangs.items():
        held.setdefault(owner, set()).update(yields[name])
    classes = {type(modules[owner]) for owner, letters in held.items() if letters == {*"qkv"}}
    attentions = [owner for owner, letters in held.items() if letters and type(modules[owner]) in classes]
    attentions = [name for name in attentions if not any(name.startswith(f"{other}.") for other in attentions)]

    found: dict[str, set[str]] = {}
    in_attention: set[str] = set()
    for attention in attentions:
        own = {name for name in linears if hangs[name][0] == attention and yields[name]}
        for name in own:
            found.setdefault(yields[name], set()).add(name)
        parent = attention.rpartition(".")[0]
        alone = modules[attention] in elements or modules[parent] in elements  # the modules around it form the block
        for scope in [attention] if alone else [attention, parent]:
            inside = {name for name in linears if name.startswith(f"{scope}.")}
            outputs = {name for name in inside - own if _is_output(hangs[name][1])}
            if outputs:
                break
        found.setdefault("o", set()).update(outputs)
        in_attention |= inside
    found["mlp"] = {name for name in linears if name not in in_attention and _is_feed_forward(name)}
    parts = sorted(found, key=lambda part: ("qkvom".index(part[0]), part))
    return {part: [name for name in linears if name in found[part]] for part in parts if found[part]}


def _is_feed_forward(name: str) -> bool:
    """Whether a module outside attention belongs to a feed-forward layer, judged by the parts of its name."""
    parts = name.lower().split(".")
    return any(map(_MLP.fullmatch, parts)) and not any(map(_ROUTER.fullmatch, parts))


def _named_layers(model: nn.Module) -> list[str]:
    """Names of the linears in the model's blocks or, if there are none, of every layer with a matrix."""
    blocks = in_blocks(model)
    return block_linears(model) or [
        name.rpartition(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and (not blocks or model.get_submodule(name.rpartition(".")[0]) in blocks)
    ]


def _attention_free(model: nn.Module) -> bool:
    """Whether no layer or parameter is named like a query, or like key and value in one, as in Mamba, RWKV and FNet."""
    if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        return False
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    held = {_yields(name.rpartition(".")[2]) for name in names}
    return not any("q" in letters or letters == "kv" for letters in held)


def resolve_places(architecture: str, places: Targets) -> Targets:
    """The layers for "houlsby" or "pfeiffer" in an architecture (Transformers' model_type); module names are returned
    unchanged. Raises SettingError if the architecture has no such positions."""
    if places not in ("houlsby", "pfeiffer"):
        return places
    if architecture not in _PLACES:
        raise SettingError(
            f"places={places} is not defined for the architecture {architecture or 'of this model'}; give the endings "
            "of module names, such as [mlp.down_proj]"
        )
    return _PLACES[architecture][str(places)]


def near(name: str, names: Iterable[str]) -> str:
    """The names most similar to `name`, for an error message; if none is similar, the last parts of all names."""
    names = list(dict.fromkeys(names))
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    ends = list(dict.fromkeys(n.rpartition(".")[2] for n in names))
    close = close or difflib.get_close_matches(name.rpartition(".")[2], ends, n=5, cutoff=0.5) or ends[:12]
    return ", ".join(close) or "none"


def wanted_names(setting: str, value: Targets) -> tuple[list[str], bool]:
    """The names in a setting, and whether its value is a single string, which may be a regular expression. Raises
    SettingError if there are no names, or the string is not a valid expression."""
    if not isinstance(value, str):
        if not value:
            also = ", or be 'all-linear'" * (setting == "targets")
            raise SettingError(f"{setting} must name at least one module{also} (got [])")
        return list(value), False
    try:
        re.compile(value)
    except re.error as error:
        name = "a module's name" if setting == "targets" else "a name"
        raise SettingError(f"{setting}={value!r} is neither {name} nor a regular expression: {error}") from None
    return [value], True


def matches(name: str, target: str, regex: bool) -> bool:
    """Whether `target` is the whole name, its last parts or, with `regex`, an expression that matches all of it."""
    return name == target or name.endswith("." + target) or (regex and re.fullmatch(target, name) is not None)


def in_blocks(model: nn.Module) -> set[nn.Module]:
    """Every module of the model's repeated blocks: those inside an nn.ModuleList."""
    return {module for stack in model.modules() if isinstance(stack, nn.ModuleList) for module in stack.modules()}


def block_linears(model: nn.Module) -> list[str]:
    """Names of the linears (nn.Linear, GPT-2's Conv1D, 4-bit ones) in the model's repeated blocks (nn.ModuleList).

    Embeddings, pooler and head are outside. Without an nn.ModuleList, every linear but the output embedding counts.
    """
    get_output: Any = getattr(model, "get_output_embeddings", None)
    blocks = in_blocks(model)
    # nn.MultiheadAttention reads its child's weight and never calls it
    left_out = {c for m in model.modules() if isinstance(m, nn.MultiheadAttention) for c in m.children()}
    left_out |= {get_output()} if get_output else set()
    return [
        name
        for name, module in model.named_modules()
        if layer_of(module) in (LINEAR, CONV1D, LINEAR_4BIT)
        and module not in left_out
        and (module in blocks or not blocks)
    ]


def find_targets(model: nn.Module, targets: Targets, train: Targets = ()) -> list[str]:
    """Module names that `targets` selects, in the model's order, without those inside the modules that `train` selects.

    targets: a sequence of suffixes ("query" or "attention.query"), one string (a suffix, or a regular expression that
    must match a whole name), or "all-linear" (see `block_linears`). Of experts stacked in one tensor, "experts" selects
    every matrix, and the full name of a matrix selects it; no other target does. Raises SettingError if a target
    matches nothing, only modules that are none of the `layers.LAYER_TYPES`, only modules that `train` trains as a
    whole, or a layer that cannot be wrapped.

    Example:
        >>> from torch import nn
        >>> model = nn.ModuleDict({"query": nn.Linear(4, 4), "key": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
        >>> find_targets(model, ["query", "key"])
        ['query', 'key']
        >>> find_targets(model, "(query|head)")
        ['query', 'head']
    """
    whole = inside(model, train)
    if targets == "all-linear":
        names = [name for name in block_linears(model) if model.get_submodule(name) not in whole]
        if not names:
            outside = " outside the modules in train" * bool(whole)
            raise SettingError(
                f"targets='all-linear' found no nn.Linear in the model{outside}; name the modules to adapt"
            )
        check_layers(model, names)
        return names
    wanted, regex = wanted_names("targets", targets)
    modules = {name: module for name, module in named_layers(model).items() if name}
    layers = [name for name, module in modules.items() if layer_of(module) is not None]
    free = {name for name in layers if storage_of(modules[name])[0] not in whole}
    found: set[str] = set()
    for target in wanted:
        if isinstance(modules.get(target), Expert):
            selected = [target]
        else:
            selected = [name for name in layers if _selects(target, name, modules[name], regex)]
        if selected and not any(name in free for name in selected):
            raise SettingError(
                f"targets={target!r} matches only {selected[0]}, which train trains as a whole; remove it from one of "
                "the two"
            )
        if not selected:
            _check_experts(target, regex, modules)
            other = {type(m).__name__ for n, m in modules.items() if matches(n, target, regex)}
            if other:
                raise SettingError(
                    f"targets={target!r} matches only {', '.join(sorted(other))} modules; an adapter can wrap "
                    f"{', '.join(layer.name for layer in LAYER_TYPES)}"
                )
            raise SettingError(f"targets={target!r} matches no module; similar names: {near(target, layers)}")
        found |= free.intersection(selected)
    names = [name for name in layers if name in found]
    check_layers(model, names)
    return names


def _selects(target: str, name: str, module: nn.Module, regex: bool) -> bool:
    """Whether a target selects a layer. Only the word "experts" selects experts, so that no pattern does so by
    accident, since a large model has thousands."""
    return target == EXPERTS if isinstance(module, Expert) else matches(name, target, regex)


def _check_experts(target: str, regex: bool, modules: Mapping[str, nn.Module]) -> None:
    """Raise SettingError for a pattern of experts' names, and for the target "experts" in a model without experts that
    can be adapted."""
    if target != EXPERTS:
        if any(isinstance(module, Expert) and matches(name, target, regex) for name, module in modules.items()):
            raise SettingError(
                f"targets={target!r} matches only experts that are stacked in one tensor; use targets='experts', which "
                "adapts them all"
            )
        return
    others = {type(module).__name__ for module in modules.values() if "Expert" in type(module).__name__}
    instead = f"the model has {', '.join(sorted(others))}" if others else "the model has none"
    raise SettingError(
        "targets='experts' adapts experts that are stacked in one tensor and whose class has Transformers' decorator "
        f"use_experts_implementation; {instead}"
    )


def check_layers(model: nn.Module, names: Sequence[str]) -> None:
    """Raise SettingError for a layer that cannot be wrapped, or that shares its weight with another module."""
    owners: dict[int, dict[tuple[int, str], str]] = {}  # by parent object, since a module may have several names
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        owners.setdefault(id(parameter), {}).setdefault(_slot(model, owner), owner)
    for name in names:
        module: Any = layer_at(model, name)
        holder, part = storage_of(module)
        place = name.rsplit(".", 2)[0] if isinstance(module, Expert) else name  # the module that keeps the weight
        why = refusal(module, model.get_submodule(place.rpartition(".")[0]))
        if why is None:
            here = _slot(model, place)
            others = [other for slot, other in owners.get(id(getattr(holder, part)), {}).items() if slot != here]
            if others:
                why = f"its weight is tied to {others[0]}'s, and an adapter on only one of them would untie the two"
        if why:
            raise SettingError(f"targets: {name} cannot be adapted: {why}; leave it out")


def _slot(model: nn.Module, name: str) -> tuple[int, str]:
    """A module's parent and its name there."""
    parent, _, child = name.rpartition(".")
    return id(model.get_submodule(parent)), child


def trained_modules(model: nn.Module, train: Targets) -> list[str]:
    """Names of the modules that the suffixes in `train` select. Raises SettingError if one matches nothing."""
    names = [name for name, _ in model.named_modules() if name]
    selected = []
    for wanted in [train] if isinstance(train, str) else train:
        hits = [name for name in names if matches(name, wanted, regex=False)]
        if not hits:
            outer = ", ".join(name for name in names if "." not in name)
            raise SettingError(
                f"train={wanted!r} matches no module; similar names: {near(wanted, names)}; outermost names: {outer}"
            )
        selected += hits
    return selected


def inside(model: nn.Module, train: Targets) -> set[nn.Module]:
    """Every module inside those that the suffixes in `train` select, including these."""
    return {module for name in trained_modules(model, train) for module in model.get_submodule(name).modules()}


def sides(model: nn.Module, name: str) -> tuple[int, int]:
    """(d_in, d_out) of the matrix of a layer that an adapter can wrap."""
    module = layer_at(model, name)
    return known_layer(module).size(module)


def rank_pattern(ranks: Mapping[str, int]) -> dict[str, int]:
    """{regular expression: rank} for PEFT, which compares it with the endings of names; it begins with ^ if the name is
    the ending of another."""
    endings = {name[i + 1 :] for name in ranks for i, letter in enumerate(name) if letter == "."}
    return {("^" if name in endings else "") + re.escape(name): rank for name, rank in ranks.items()}

"""The settings of a run, config.yaml, as one flat mapping."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adarank.runs.files import CONFIG


def read(folder: Path) -> dict[str, Any] | None:
    """`config.yaml` of a run's folder, flattened by `flat`; None if it is missing or cannot be read."""
    import yaml  # type: ignore[import-untyped]

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if libyaml is installed
    try:
        config = yaml.load((folder / CONFIG).read_text(encoding="utf-8"), Loader=loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return flat(config) if isinstance(config, dict) else None


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted name: value}: `{train: {lr: 0.001}}` becomes {"train.lr": 0.001}, and `{score: {_target_:
    package.scores.adalora}}` {"score": "adalora"}."""
    return dict(_flatten(config, ""))


def text(value: Any) -> str:
    """A setting's value as it appears in tables."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(text(item) for item in value)
    return str(value)


def _flatten(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        elif key == "_target_":
            yield prefix.removesuffix(".") or key, text(value).rpartition(".")[2]
        else:
            yield f"{prefix}{key}", value

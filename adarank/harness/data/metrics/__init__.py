"""Metrics for labels, answer spans and generated texts. Packages are imported when a metric is first computed."""

LOWER_IS_BETTER = {"loss"}


def higher_is_better(name: str) -> bool:
    return name not in LOWER_IS_BETTER

"""adarank inside other people's tools; importing this needs none of them."""

from adarank.integrations.trainer import RankTrainerMixin

__all__ = ["RankTrainerMixin"]

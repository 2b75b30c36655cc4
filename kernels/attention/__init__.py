"""Attention of many queries to keys and values that they share."""

from .api import attend, holds_scores

__all__ = ["attend", "holds_scores"]

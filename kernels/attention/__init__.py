"""Attention of many queries to keys and values that they share."""

from .api import attend, has_cudnn, holds_scores

__all__ = ["attend", "has_cudnn", "holds_scores"]

"""Attention of many queries to keys and values that they share."""

from .api import attend, attend_part, has_cudnn, holds_scores, merge

__all__ = ["attend", "attend_part", "has_cudnn", "holds_scores", "merge"]

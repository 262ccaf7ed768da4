"""Subsentences: the units of SSPO's ratio, from text (the reference) and from token ids inside jit.

segmenter = Segmenter.from_tokenizer(tokenizer)
ids = segmenter(tokens, mask)          # [batch, time], on the device
pieces = segmenter.split(text)         # the same on text
"""

from sspo_jax.subsentences.rules import BoundaryRule, parse_rule
from sspo_jax.subsentences.segmenter import Segmenter

__all__ = ["BoundaryRule", "Segmenter", "parse_rule"]

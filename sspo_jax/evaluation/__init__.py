"""Evaluation: scores of sampled answers with their intervals, reports and comparisons."""

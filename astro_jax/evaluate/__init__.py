"""Evaluation on held-out problems, and statistics with intervals."""

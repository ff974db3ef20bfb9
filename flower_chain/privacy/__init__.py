"""Noise, and what it protects: pure functions on numbers."""

from flower_chain.privacy.output_perturbation import Mechanism, perturb, rows_of_norm_one

__all__ = ["Mechanism", "perturb", "rows_of_norm_one"]

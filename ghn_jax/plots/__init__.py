"""Drawings of runs and evaluations, with the extra `plots`."""

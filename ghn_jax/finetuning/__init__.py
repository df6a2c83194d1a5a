"""Trains a network from predicted, random or earlier parameters, and compares such starts."""

"""Turning a plan into weights: a single-device recipe, run on any number of ranks, surviving failure."""

"""Fewer bits: quantised models and how much each layer suffers."""

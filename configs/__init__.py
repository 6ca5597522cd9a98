"""Whole YAML presets, read by `doxastic.experiment`."""

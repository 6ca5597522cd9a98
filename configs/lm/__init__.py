"""Presets of the language model, one YAML file each."""

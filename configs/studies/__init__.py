"""Presets of studies, one YAML file each."""

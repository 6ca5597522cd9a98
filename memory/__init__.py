"""Modules that remember."""

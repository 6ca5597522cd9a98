"""Drawings of the tasks' true states, by group; loaded when something is drawn."""

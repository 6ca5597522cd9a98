"""Acting and learning."""

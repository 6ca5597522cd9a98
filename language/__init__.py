"""The recurrent core as a language model."""

"""The core as a language model, from the command line: runs, progress, files."""

"""The tasks, one file and one question each, and what several of them share."""

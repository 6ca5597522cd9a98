"""The statistics of a study: arrays of returns in, scores with intervals out."""

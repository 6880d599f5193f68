"""Convert weights, export those of a run, upload those of a model."""

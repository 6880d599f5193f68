"""Every fault of a dataset, found before a run."""

"""Low-rank adapters on the attention projections."""

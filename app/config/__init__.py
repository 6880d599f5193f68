"""Configuration: YAML layers, flags and overrides, merged, checked and typed."""

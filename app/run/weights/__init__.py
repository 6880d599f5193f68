"""Weights in and out: convert, export, put."""

"""Parity with the recorded tensors."""

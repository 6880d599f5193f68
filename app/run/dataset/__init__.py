"""What a dataset holds, and which of its samples are bad."""

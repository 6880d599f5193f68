"""Videos from prompts."""

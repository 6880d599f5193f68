"""One module for each section of `model:` and `data:`: plain dicts in, schema classes out."""

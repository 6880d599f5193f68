"""The table of arguments, one row each, and the page that documents it."""

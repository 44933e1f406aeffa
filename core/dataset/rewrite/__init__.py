"""Write a dataset again: repaired, renamed, mixed. Never changes a file in place."""

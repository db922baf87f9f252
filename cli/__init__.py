"""The `selu` command."""

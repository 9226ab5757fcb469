"""What stands behind the scripts; each module is usable alone and imports no script."""

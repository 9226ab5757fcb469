"""What stands behind the scripts, in wings; a file imports only from floors below its own, or from its own wing."""

"""The command line: parses, calls, prints. Nothing here is heavy to import, and nothing here is logic."""

"""From the command line to checked settings."""

"""The laboratory: one run, from settings to a folder."""

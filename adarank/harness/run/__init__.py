"""One run, from its settings to a finished folder."""

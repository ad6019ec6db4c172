"""The commands that work on an adapter's folder."""

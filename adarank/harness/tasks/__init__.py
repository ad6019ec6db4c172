"""Tasks: each loader is a plain function that returns a `base.Task`."""

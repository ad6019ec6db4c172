"""One figure per file: `draw(...)` returns a matplotlib Figure, or None if there is nothing to draw."""

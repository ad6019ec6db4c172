"""One figure a file: `draw(...)` returns a matplotlib Figure, or None when there is nothing to draw."""

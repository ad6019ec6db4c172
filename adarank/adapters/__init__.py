"""How a weight change is parametrised, and how it gets into a model."""

"""Parametrisations of weight changes, and how they are inserted into a model."""

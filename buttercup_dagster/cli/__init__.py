"""The commands; each has a module of its own, and heavy imports stand inside functions."""

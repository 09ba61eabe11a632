"""The scene world: drawings whose true edit is known, their reader, and the training of the built-in model."""

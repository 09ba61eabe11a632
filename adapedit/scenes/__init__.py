"""The scene world: captioned pictures whose true edit is known for any pair of prompts."""

"""How the built-in models are made: every stage is a resumable command, `python -m adapedit.training.<stage>`."""

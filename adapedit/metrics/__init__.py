"""Figures of merit: what an edit changed, what it kept, and where the words look."""

"""What others do, for comparison in the same run; nothing of the project depends on it."""

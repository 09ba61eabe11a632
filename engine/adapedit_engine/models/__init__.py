"""Models that take an edit as data: what rows of one call take from each other are inputs."""

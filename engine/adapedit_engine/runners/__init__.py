"""Runners: what executes a model. One protocol, one file each."""

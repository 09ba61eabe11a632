"""The engine: rows and controls, a model that takes controls, steps over a batch of edits, runners and bundles.

Names are imported from the modules that have them.
"""

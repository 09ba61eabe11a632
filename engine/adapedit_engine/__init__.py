"""Rows, controls and the denoising loop: a UNet that takes an edit as data."""

"""How a checkpoint becomes a bundle that runs without PyTorch."""

from adapedit_export.options import ExportError, ExportOptions, Precision

__all__ = ["ExportError", "ExportOptions", "Precision"]

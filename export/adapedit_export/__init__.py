"""How a checkpoint becomes a bundle that runs without PyTorch."""

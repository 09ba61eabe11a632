"""The attention operations of an edit: a plain reference and a Triton kernel for each."""

"""Networks as plain PyTorch: specs, attention kinds, the vision transformer, its searchable form, and model names."""

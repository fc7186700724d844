"""The engine compared with PyTorch: the reference, and the difference that is allowed."""

"""The engine held against PyTorch: the reference, and how far two answers may differ."""

"""The C library for Python: its functions, checks of arguments, its memory as arrays, its options and checkpoints."""

"""The C library: bound, what it is handed checked, its memory as arrays, its options, its checkpoints."""

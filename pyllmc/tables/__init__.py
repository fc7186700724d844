"""The tables that C and Python share, read as text: csrc/tensors.def and csrc/options.def. Nothing compiled is needed."""

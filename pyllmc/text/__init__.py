"""Text to token files and back: byte pairs, tokenizers, readers of text, data sets. A bare Python runs this room."""

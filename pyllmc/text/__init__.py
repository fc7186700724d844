"""From text to token files and back: byte pairs, tokenizers, readers of text, data sets. It runs on a bare Python."""

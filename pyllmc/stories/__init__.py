"""The embedded default corpus: its grammar, told and read, and the exam of texts by it. Standard library only."""

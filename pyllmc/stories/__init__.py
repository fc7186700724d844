"""The embedded default corpus: a grammar that tells stories and reads them, and an exam of texts by it.

Standard library only.
"""

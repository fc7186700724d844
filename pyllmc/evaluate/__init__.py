"""Evaluation by published protocols: likelihoods of texts, words and choices."""

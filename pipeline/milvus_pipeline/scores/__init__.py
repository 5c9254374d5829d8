"""Reranker scores, kept in a file between runs."""

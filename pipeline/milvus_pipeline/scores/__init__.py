"""Reranker scores that a file keeps between runs."""

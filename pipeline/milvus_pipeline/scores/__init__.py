"""Scores of rerankers: their checks and order, and the file that keeps them between runs."""

"""Stages that rerank."""

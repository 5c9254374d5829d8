"""Stages that retrieve."""

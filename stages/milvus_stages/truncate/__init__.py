"""Stages that truncate."""

"""Stages that encode."""

"""Checks of stages before a first query, one module for each kind of stage."""

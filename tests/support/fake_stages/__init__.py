"""Stages without models or servers, for tests of the framework."""

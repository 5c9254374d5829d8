"""The engine of models that run on this machine."""

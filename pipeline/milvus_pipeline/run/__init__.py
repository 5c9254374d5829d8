"""The engine: runs a batch of queries through the stages."""

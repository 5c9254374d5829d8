"""The engine: runs batches of queries through the stages."""

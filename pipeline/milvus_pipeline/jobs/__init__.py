"""Jobs: many queries from a file, answered through a pipeline into a file; resumable."""

"""Jobs: many queries from a file through a pipeline into a file, resumable wherever they are interrupted."""

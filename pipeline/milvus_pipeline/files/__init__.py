"""Files that are read and written: queries, judgements, results."""

"""Files to records, and records to a Milvus collection."""

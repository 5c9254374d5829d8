"""Connections to Milvus Lite and to servers."""

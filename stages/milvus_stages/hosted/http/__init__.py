"""HTTP clients with a total deadline; nothing here knows about reranking."""

"""A demonstration on real input: searches the documentation that Python ships, reranks, cuts, and shows the effect."""

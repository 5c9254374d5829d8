"""A demonstration on real input: search the documentation that Python ships, rerank, cut, and show what that did."""

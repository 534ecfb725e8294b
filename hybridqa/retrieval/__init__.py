"""Retrieval: text to vectors, dense and lexical search, and their fusion."""

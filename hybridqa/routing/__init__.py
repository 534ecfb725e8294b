"""Routing: what was retrieved, weighed, becomes the passages and modules that answer."""

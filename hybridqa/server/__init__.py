"""The HTTP face of a store: what the `openai` client speaks, over `HybridQA`."""

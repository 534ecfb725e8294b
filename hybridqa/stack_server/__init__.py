"""What makes a stock vLLM server answer `model="stack:…"` from a store's modules."""

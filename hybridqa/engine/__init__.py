"""Engines: one protocol, vLLM for service, a plain transformers+peft engine as the yardstick."""

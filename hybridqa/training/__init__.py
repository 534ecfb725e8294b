"""Distils documents into knowledge modules: pairs to learn from, the objective, the trainer, the gate, the refresh."""

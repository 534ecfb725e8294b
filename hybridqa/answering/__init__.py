"""From a question and its evidence to a prompt, and from the engine's text to an answer with citations."""

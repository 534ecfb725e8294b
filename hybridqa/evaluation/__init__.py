"""Measuring: questions with gold answers, the arms they are asked in, and statistics that say what is noise."""

"""Readers (text, Markdown, HTML, PDF, DOCX) and the splitter that makes exact-offset passages."""

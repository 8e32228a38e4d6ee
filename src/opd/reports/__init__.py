"""Results as documents (HTML, plain text, Markdown), and the report of a run. No torch."""

"""Text: sources, documents, tokens, and the contexts that a language model runs. No torch here."""

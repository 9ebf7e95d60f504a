"""Text as a sequence of tokens, for language models: reading, vocabulary, windows and their loaders."""

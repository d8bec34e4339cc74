"""Instructions written by a vision-language model behind any OpenAI-compatible endpoint."""

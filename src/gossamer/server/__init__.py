"""A model behind HTTP: the OpenAI API and a chat page. Layer 8."""

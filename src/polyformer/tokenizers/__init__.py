"""Text to token ids and back: tokenizer files, GGUF metadata, streaming decoding and chat templates."""

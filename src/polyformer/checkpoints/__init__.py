"""Files on one side, weights on the other: safetensors, pickles, GGUF, the catalogue, hubs and the cache."""

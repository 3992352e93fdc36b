"""Prompts: embeddings in safetensors files, and the encoders that make them."""

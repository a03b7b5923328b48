"""A checkpoint exported for other programs, and loaded again before it is called finished.

python export.py CHECKPOINT OUT --format peft|merged|gguf|gguf-adapter|ollama
"""

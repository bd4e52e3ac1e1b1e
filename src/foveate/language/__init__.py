"""First floor: from text to tokens and back: language models, their tokenizers, and the files they come in.

Read in this order: tokenizer.py, gguf.py and llama_gguf.py (the file format of llama.cpp), smollm2.py (the default
model).
"""

"""First floor: from text to tokens and back: language models, their tokenizers, chat templates and generation.

Read in this order: open.py (a model from any source), tokenizer.py and chat.py (turns to tokens and labels),
generate.py (embeddings to tokens), gguf.py and llama_gguf.py (the file format of llama.cpp), smollm2.py (the default
model).
"""

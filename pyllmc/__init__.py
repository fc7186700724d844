"""pyllmc: a Python-driven, llm.c-style C/CUDA trainer for GPT-2-class language models."""

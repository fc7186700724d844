"""minGPT's interface over the engine: a program that imports mingpt imports pyllmc.mingpt instead, and nothing else changes."""

"""Hugging Face checkpoints: found, read, written, as whole models or as PEFT adapters."""

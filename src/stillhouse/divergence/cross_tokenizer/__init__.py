"""Distillation between models with different tokenizers (methods of ULD and GOLD)."""

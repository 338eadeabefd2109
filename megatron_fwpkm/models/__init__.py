"""The language model: Megatron's GPT with memories before chosen layers."""

"""How a row's logits are packed."""

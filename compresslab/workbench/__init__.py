"""What every lesson uses and none teaches: data, text, small models, one training loop, checkpoints."""

__all__: list[str] = []

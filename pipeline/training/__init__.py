"""From conversations and a base model to an adapter: TRL's loop with our batches, our loss and our checkpoints."""

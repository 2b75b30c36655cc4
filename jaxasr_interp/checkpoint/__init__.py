"""Reading and writing model weights: data only, nothing in a checkpoint is ever executed."""

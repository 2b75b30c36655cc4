"""What long work rests on: identity, stores."""

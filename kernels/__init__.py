"""Operations with more than one implementation: a public `api`, a plain-XLA `reference`, backends."""

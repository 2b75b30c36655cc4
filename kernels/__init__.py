"""Operations with several implementations: a public `api`, a plain-XLA `reference`, backends."""

"""Operations with several implementations: a public `api`, a `reference` in XLA, and backends."""

"""Functions that identities are made of."""


def times(factor):
    return lambda site, layer, value: factor * value

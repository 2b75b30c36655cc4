"""The loops behind `generate`: cached decoding of many rows, greedy, sampled and by beam search."""

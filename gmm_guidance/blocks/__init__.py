"""Stacks of blocks and the evaluation of passes through them."""

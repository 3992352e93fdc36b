"""A real model on real images that trains on a laptop: handwritten digits."""

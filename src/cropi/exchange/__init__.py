"""Exchange with the trainers that people use: their rollouts in, ranked data out."""

<<<<<<< HEAD
"""Exchange with the trainers that people use: their rollouts in, ranked data out."""
=======
"""Exchange with other trainers: their rollouts in, our selections out in their own formats."""
>>>>>>> main

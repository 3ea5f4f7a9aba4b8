"""Exchange with other trainers: their rollouts in, our selections out in their own formats."""

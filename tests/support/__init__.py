"""What tests share: tiny models and runs, synthetic files, fakes, and the slow gradient."""

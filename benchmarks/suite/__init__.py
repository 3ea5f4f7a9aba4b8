"""What suites of generated skills share: skills, a corpus with slips, and how models are made."""

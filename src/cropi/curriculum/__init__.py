"""The curriculum: `loop` is the method on one screen, and each other file is one of its steps.

Each step leaves a file that records what it was made from, and returns at once where that file is
current; that is all there is to resuming.
"""

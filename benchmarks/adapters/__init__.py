"""One module per library; each offers `Losses(settings)` with load, run, answer and versions."""

"""What `python -m ms_ce` does: the doctor, the benchmark, the build for Ascend."""

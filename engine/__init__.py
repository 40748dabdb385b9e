"""How training runs: accumulation, EMA, schedules, the loop, checkpoints, run directories."""

"""What every training run needs: configuration, command line, sampler, training loop, checkpoints, run folder."""

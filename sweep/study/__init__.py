"""Planning and running a study: configuration, grid, jobs, executors, results."""

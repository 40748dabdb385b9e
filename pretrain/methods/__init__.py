"""Self-supervised methods: modules that map two views to a loss."""

"""Encoders: building them, adapting their input channels, loading and saving their weights."""

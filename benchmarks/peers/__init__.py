"""Other libraries' methods, used or re-created from their documentation; none of their code is copied."""

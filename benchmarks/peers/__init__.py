"""What others do, as their documentation or `docs/SPEED.md` describes it; none of it is their code."""

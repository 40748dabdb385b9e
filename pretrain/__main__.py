"""`python -m pretrain --stage generalist|specialist|hierarchical`: an encoder from unlabelled images."""

from data.errors import user_errors


def main() -> None:
    """Parse the command line and run the stage."""
    with user_errors():
        from engine.config import parse
        from pretrain.config import RECIPES

        cfg = parse(RECIPES, __doc__ or "")
        from pretrain.stages import run

        result = run(cfg)
        root = f" --data-root {cfg.data_root}" if cfg.data_root else ""
        dataset = f" --dataset {cfg.dataset}" if cfg.dataset != "acdc" else ""
        print(f"encoder: {result['encoder']}")
        print(f"next:    python -m segment --labelled-fraction 0.02 --init {result['encoder']}{dataset}{root}")


if __name__ == "__main__":
    main()

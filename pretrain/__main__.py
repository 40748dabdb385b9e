"""`python -m pretrain --stage generalist|specialist|hierarchical`: an encoder from unlabelled images."""

import sys

from data.errors import user_errors


def main() -> None:
    """Parse the command line and run the stage."""
    with user_errors():
        from engine.config import parse
        from pretrain.config import recipes_for

        cfg = parse(recipes_for(sys.argv[1:]), __doc__ or "")
        from pretrain.stages import run

        result = run(cfg)
        root = f" --data-root {cfg.data_root}" if cfg.data_root else ""
        dataset = f" --dataset {cfg.dataset}" if cfg.dataset != "acdc" else ""
        print(f"encoder: {result['encoder']}")
        job = "segment --labelled-fraction 0.02"
        if cfg.of_exams:
            job = f"classify --encoder {cfg.encoder} --plane {cfg.plane}"
        print(f"next:    python -m {job} --init {result['encoder']}{dataset}{root}")


if __name__ == "__main__":
    main()

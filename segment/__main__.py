"""`python -m segment --labelled-fraction 0.02 [--init FILE]`: a U-Net from few labels, scored on whole volumes."""

from data.errors import user_errors


def main() -> None:
    """Parse the command line, train, score and say what was found."""
    with user_errors():
        from engine.config import parse
        from segment.config import RECIPES

        cfg = parse(RECIPES, __doc__ or "")
        from segment.report import print_result
        from segment.training import run

        result = run(cfg)
        if "dice" in result:
            print_result(result, cfg)


if __name__ == "__main__":
    main()

"""`python -m classify --task acl --plane sagittal [--init FILE]`: a classifier of exams, scored with intervals."""

from data.errors import user_errors


def main() -> None:
    """Parse the command line, train, score and say what was found."""
    with user_errors():
        from classify.config import RECIPES
        from engine.config import parse

        cfg = parse(RECIPES, __doc__ or "")
        from classify.report import print_result
        from classify.training import run

        result = run(cfg)
        if "threshold" in result:
            print_result(result, cfg)


if __name__ == "__main__":
    main()
